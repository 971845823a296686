import errno
import os

import pytest

from pipeline.storage import locations, retrying
from pipeline.storage.locations import StoreError, UnwritableError


def test_unwritable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for url in (str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        with pytest.raises(ValueError, match="cannot write") as caught:
            locations.check_writable(url)
        assert "\n" not in str(caught.value)
    locations.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full; free space there"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "you may not write there"),
        (errno.EPERM, "you may not write there"),
    ],
)
@pytest.mark.parametrize("write", [locations.write_bytes, locations.create_exclusively])
def test_a_place_that_cannot_be_written_says_why_and_keeps_nothing(
    tmp_path, monkeypatch, number, says, write
):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnwritableError, match=says) as caught:
        write(str(tmp_path / "one"), b"data")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "one") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket_and_missing_rights(quiet):
    folder, proxy = quiet
    with pytest.raises(UnwritableError, match="no such bucket; make it"):
        locations.check_writable("s3://no-such-bucket-of-ours/x")
    proxy.fail_next("403 AccessDenied", method="PUT")
    with pytest.raises(UnwritableError, match="you may not write there"):
        locations.check_writable(folder)
    locations.check_writable(folder)
    assert locations.list_files(folder) == []


def test_neither_endpoint_nor_credentials_are_in_a_message(quiet, object_store, monkeypatch):
    import logging

    folder, proxy = quiet
    monkeypatch.setattr(retrying, "TRIES", 1)
    secrets = [value for name, value in object_store.environment.items() if "KEY" in name]
    secrets += [object_store.endpoint, object_store.endpoint.rsplit("/", 1)[-1]]
    assert len(secrets) == 4
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    messages = []
    for fault in ("stall", "reset before", "truncate", "403 InvalidAccessKeyId", "slow down"):
        for operation in (
            lambda: locations.write_bytes(folder + "/one", b"1"),
            lambda: locations.read_bytes(folder + "/one"),
            lambda: locations.list_files(folder),
            lambda: locations.remove(folder + "/one"),
        ):
            proxy.fail_next(fault, 12)
            try:
                if fault != "stall" or not messages:
                    operation()
            except (ValueError, FileNotFoundError) as error:
                messages.append(str(error))
            proxy._planned.clear()
    assert len(messages) > 10
    for message in messages:
        assert folder in message
        assert "\n" not in message
        assert not [secret for secret in secrets if secret in message], message


def test_a_store_that_fails_is_told_from_a_place_that_cannot_be_written(quiet, monkeypatch):
    folder, proxy = quiet
    monkeypatch.setattr(retrying, "TRIES", 1)
    locations.write_bytes(folder + "/one", b"1")
    for operation in (
        lambda: locations.write_bytes(folder + "/one", b"1"),
        lambda: locations.create_exclusively(folder + "/two", b"1"),
        lambda: locations.remove(folder + "/one"),
        lambda: locations.read_bytes(folder + "/one"),
        lambda: locations.exists(folder + "/one"),
        lambda: locations.file_entry(folder + "/one"),
        lambda: locations.list_files(folder),
        lambda: locations.glob_files(folder + "/*"),
    ):
        proxy.fail_next("slow down", 20)
        with pytest.raises(StoreError, match=r"the store failed.*; try again later$") as caught:
            operation()
        assert "choose" not in str(caught.value)
        proxy._planned.clear()
    proxy.fail_next("403 AccessDenied", 20)
    with pytest.raises(StoreError, match="cannot read"):
        locations.read_bytes(folder + "/one")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("look", [locations.exists, locations.is_folder, locations.file_entry])
def test_a_filesystem_that_fails_has_not_lost_its_files(tmp_path, monkeypatch, number, look):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(retrying, "TRIES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        with pytest.raises(StoreError, match=os.strerror(number)):
            look(str(tmp_path))
    assert locations.exists(str(tmp_path))
    assert locations.is_folder(str(tmp_path))
    (tmp_path / "file").write_text("")
    for missing in ("none", "file/below"):
        assert not locations.exists(str(tmp_path / missing))
        assert not locations.is_folder(str(tmp_path / missing))
