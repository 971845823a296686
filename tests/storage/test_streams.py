"""Files that are written piece by piece: whole or not there, on every store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import locations
from pipeline.storage.streams import Written, remove_empty_folder, write_stream

PIECES = [b"", b"abc", bytes(range(256)) * 10_000, b"end"]


def test_a_stream_is_written_on_any_store(place: str):
    url = locations.join(place, "folder", "file")
    whole = b"".join(PIECES)
    wanted = Written(len(whole), hashlib.sha256(whole).hexdigest())
    assert write_stream(url, lambda: PIECES) == wanted
    assert locations.read_bytes(url) == whole
    assert write_stream(url, lambda: [b"other"]).bytes == 5
    assert locations.read_bytes(url) == b"other"
    assert write_stream(url, lambda: []).bytes == 0
    assert locations.read_bytes(url) == b""


def test_an_upload_of_several_parts(bucket_folder: str):
    piece = bytes(range(256)) * 4096  # 1 MB; s3fs sends 50 MB at a time
    url = f"{bucket_folder}/large"
    assert write_stream(url, lambda: (piece for _ in range(60))).bytes == 60 << 20
    assert locations.file_entry(url).size == 60 << 20
    assert locations.read_bytes(url, (50 << 20) - 256, (50 << 20) + 256) == bytes(range(256)) * 2


def test_an_upload_that_is_given_up_costs_nothing(bucket_folder: str):
    locations.write_bytes(f"{bucket_folder}/large", b"before")

    def failing() -> Iterator[bytes]:
        yield from (bytes(1 << 20) for _ in range(60))
        raise ValueError("a part is damaged")

    with pytest.raises(ValueError, match="a part is damaged"):
        write_stream(f"{bucket_folder}/large", failing)
    assert locations.read_bytes(f"{bucket_folder}/large") == b"before"
    assert locations.abort_uploads(bucket_folder, 0) == 0


def test_pieces_that_fail_leave_what_was_there(place: str):
    url = locations.join(place, "file")
    locations.write_bytes(url, b"before")

    def failing() -> Iterator[bytes]:
        yield b"x" * (2 << 20)
        raise FileNotFoundError("no such entry")

    with pytest.raises(FileNotFoundError, match="no such entry"):
        write_stream(url, failing)
    assert locations.read_bytes(url) == b"before"
    assert [entry.name for entry in locations.list_files(place)] == ["file"]


def test_pieces_are_asked_for_again_when_the_store_fails_for_a_moment(tmp_path: Path):
    tries = []

    def flaky() -> Iterator[bytes]:
        tries.append(1)
        yield b"a"
        if len(tries) == 1:
            raise ConnectionError("reset")
        yield b"b"

    assert write_stream(str(tmp_path / "file"), flaky).bytes == 2
    assert (tmp_path / "file").read_bytes() == b"ab"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*/file/below"):
        write_stream(str(tmp_path / "file" / "below"), lambda: [b"x"])


def test_only_empty_folders_are_removed(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "none"):
        remove_empty_folder(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
