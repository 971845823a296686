import os
import uuid

import pytest

from pipeline.storage import locations


@pytest.fixture(params=["local", "file", "memory"])
def root(request, tmp_path):
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/root"
    return str(tmp_path / "root") if request.param == "local" else f"file://{tmp_path}/root"


def test_what_is_written_is_read_and_listed(root):
    locations.write_bytes(locations.join(root, "b", "two.bin"), b"0123456789")
    locations.write_bytes(locations.join(root, "one.bin"), b"1")
    locations.write_bytes(locations.join(root, ".hidden"), b"1")
    listed = locations.list_files(root)
    assert [(entry.name, entry.size) for entry in listed] == [("b/two.bin", 10), ("one.bin", 1)]
    assert locations.read_bytes(listed[0].url) == b"0123456789"
    assert locations.read_bytes(listed[0].url, 2, 5) == b"234"
    assert locations.exists(locations.join(root, "one.bin"))
    assert locations.is_folder(root)
    assert [e.name for e in locations.glob_files(locations.join(root, "b", "*.bin"))] == ["two.bin"]
    locations.remove(listed[0].url)
    assert not locations.exists(listed[0].url)


def test_a_missing_folder_lists_nothing_and_a_missing_file_is_not_found(root):
    assert locations.list_files(root) == []
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
        locations.read_bytes(locations.join(root, "nothing"))


def test_writing_replaces_and_leaves_no_temporary(tmp_path):
    url = str(tmp_path / "file")
    locations.write_bytes(url, b"old")
    locations.write_bytes(url, b"new")
    assert locations.read_bytes(url) == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_crash_before_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    url = str(tmp_path / "file")
    locations.write_bytes(url, b"old")

    def crash(_):
        raise OSError("pulled the plug")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(ValueError, match="cannot write"):
        locations.write_bytes(url, b"new")
    assert locations.read_bytes(url) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_object_store_sees_one_put(monkeypatch):
    filesystem, _ = locations.resolve("memory://bucket")
    puts = []
    monkeypatch.setattr(type(filesystem), "pipe_file", lambda self, path, data: puts.append(path))
    locations.write_bytes("memory://bucket/name", b"data")
    assert puts == ["/bucket/name"]


def test_unwritable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for url in (str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        with pytest.raises(ValueError, match="cannot write") as caught:
            locations.check_writable(url)
        assert "\n" not in str(caught.value)
    locations.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "relative",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        ".",
        "a/./b",
        "a\0b",
        "a\\..\\b",
        "~/x",
        "s3://b/x",
        "z::x",
    ],
)
def test_join_inside_refuses_to_leave(relative):
    with pytest.raises(ValueError, match="refused"):
        locations.join_inside("/root", relative)


def test_join_inside_stays():
    assert locations.join_inside("/root/", "data/x.parquet") == "/root/data/x.parquet"


@pytest.mark.parametrize("url", ["", "a\0b", "nosuchprotocol://x"])
def test_what_is_no_location(url):
    with pytest.raises(ValueError):
        locations.resolve(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/local/path?x=1", "/local/path?x=1"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("s3://id:secret@bucket/key", "s3://***@bucket/key"),
        ("https://h/x?X-Amz-Signature=secret", "https://h/x?***"),
        ("sftp://me:se@cret@host/x and s3://b", "sftp://***@host/x and s3://b"),
    ],
)
def test_credentials_are_masked(text, shown):
    assert locations.redact_url(text) == shown


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locations.absolute("data") == str(tmp_path / "data")
    assert locations.absolute("s3://bucket/x/") == "s3://bucket/x"
