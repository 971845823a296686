import errno
import io
import os

import pytest

from pipeline.storage import retrying
from pipeline.storage.locations import StoreError, open_for_reading
from pipeline.storage.open_files import CheckedFile
from pipeline.storage.parquet_files import cut_parquet
from tests.storage.samples import text_corpus, write_parquet


class Failing(io.BytesIO):
    """A file whose reads fail `times` times, after moving on."""

    def __init__(self, data, times):
        super().__init__(data)
        self.times = times

    def readinto(self, buffer):
        self.times -= 1
        if self.times >= 0:
            self.seek(3, io.SEEK_CUR)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)


def test_a_read_that_fails_is_tried_again_from_where_it_began(monkeypatch):
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    data = os.urandom(100_000)
    file = io.BufferedReader(CheckedFile(Failing(data, 3), "x"))
    assert file.read(10) == data[:10]
    file.seek(-5, io.SEEK_END)
    assert file.read() == data[-5:]
    file.seek(50)
    assert file.read(70_000) == data[50:70_050]


def test_a_read_that_fails_on_is_no_damaged_file(tmp_path, monkeypatch):
    monkeypatch.setattr(retrying, "TRIES", 1)
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"]})
    with open_for_reading(path) as file:
        whole = file.read()
    assert whole == (tmp_path / "a.parquet").read_bytes()
    monkeypatch.setattr(
        "pipeline.storage.locations.open_for_reading",
        lambda url: io.BufferedReader(CheckedFile(Failing(whole, 99), url)),
    )
    with pytest.raises(StoreError, match="the store failed"):
        cut_parquet(text_corpus(path), path, 10)
