import errno
import os
from pathlib import Path

import pytest

from pipeline.storage import locations


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


def test_identity_of_a_local_file_sees_a_change_whose_time_was_set_back(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(b"same")
    before, status = locations.file_entry(str(path)), path.stat()
    path.write_bytes(b"else")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert locations.file_entry(str(path)).identity != before.identity


def test_creating_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    url = str(tmp_path / "one")
    assert locations.create_exclusively(url, b"ours")
    assert not locations.create_exclusively(url, b"theirs")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"ours"]


def test_a_linked_folder_is_not_listed_through(tmp_path):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "one").write_bytes(b"1")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "root" / "sub" / "one")
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "nothing")
    root = str(tmp_path / "root")
    assert [entry.name for entry in locations.list_files(root)] == ["gone", "linked", "sub/one"]
    assert {entry.name: entry.size for entry in locations.list_files(root)}["linked"] == 1
    assert [e.name for e in locations.glob_files(root + "/l*")] == ["linked"]
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    with pytest.raises(ValueError, match="loop is a link to a folder, which is not followed"):
        locations.list_files(root)


def test_leftovers_of_killed_writers_go_when_old(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    (tmp_path / "data").mkdir()
    kept = [".hidden", ".x.tmp", f"x.{'0' * 32}.tmp", f".x.{'g' * 32}.tmp", "one"]
    for name in kept:
        (tmp_path / "data" / name).write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing
        with pytest.raises(KeyboardInterrupt):
            locations.write_bytes(str(tmp_path / "data" / "shard"), b"half")
    assert len(list((tmp_path / "data").iterdir())) == len(kept) + 1
    assert locations.remove_leftovers(str(tmp_path), 60) == 0
    assert locations.remove_leftovers(str(tmp_path), 0) == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(kept)
    assert locations.remove_leftovers("memory://nothing", 0) == 0
