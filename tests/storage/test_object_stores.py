import functools
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import locations
from pipeline.storage.locations import UnwritableError
from pipeline.storage.object_stores import RangeFile


def test_an_object_store_sees_one_put(monkeypatch):
    filesystem, _ = locations.resolve("memory://bucket")
    puts = []
    monkeypatch.setattr(type(filesystem), "pipe_file", lambda self, path, data: puts.append(path))
    locations.write_bytes("memory://bucket/name", b"data")
    assert puts == ["/bucket/name"]


def test_many_files_are_removed_and_others_stay(quiet, tmp_path):
    folder, proxy = quiet
    for place in (folder, str(tmp_path)):
        urls = [locations.join(place, f"{index}*") for index in range(5)]
        for url in urls:
            locations.write_bytes(url, b"1")
        proxy.requests.clear()
        locations.remove_files([*urls[:4], locations.join(place, "none")])
        assert [entry.url for entry in locations.list_files(place)] == urls[4:]
        if place == folder:
            assert proxy.requests == {"POST": 1, "GET": 1}


def test_what_another_process_wrote_or_deleted_is_seen(quiet):
    """A filesystem that remembers its listings would still show what was there before."""
    import boto3

    folder, _ = quiet
    bucket, key = folder.removeprefix("s3://").split("/", 1)
    locations.write_bytes(folder + "/old", b"1")
    assert len(locations.list_files(folder)) == 1
    other = boto3.client("s3")
    other.delete_object(Bucket=bucket, Key=f"{key}/old")
    other.put_object(Bucket=bucket, Key=f"{key}/new", Body=b"22")
    assert not locations.exists(folder + "/old")
    assert locations.exists(folder + "/new")
    assert locations.file_entry(folder + "/new").size == 2
    assert [entry.name for entry in locations.list_files(folder)] == ["new"]


def test_a_body_that_is_short_without_an_error_is_read_again(quiet, monkeypatch):
    folder, _ = quiet
    url = folder + "/one"
    locations.write_bytes(url, b"0123456789")
    filesystem, _ = locations.resolve(url)
    whole, answers = filesystem.cat_file, []

    def short(path, start=None, end=None, **options):
        data = whole(path, start=start, end=end, **options)
        answers.append(data)
        return data[:-1] if len(answers) < 3 else data

    monkeypatch.setattr(filesystem, "cat_file", short)
    assert locations.read_bytes(url, 2, 8) == b"234567"
    assert len(answers) == 3


def test_an_open_file_survives_faults_between_its_reads(quiet):
    folder, proxy = quiet
    data = os.urandom(3 << 20)
    url = folder + "/large"
    locations.write_bytes(url, data)
    with locations.open_for_reading(url) as file:
        file.seek(-8, io.SEEK_END)
        assert file.read(8) == data[-8:]
        for index, fault in enumerate(
            ["truncate", "slow down", "reset after", "500 InternalError"]
        ):
            proxy.fail_next(fault, 2, method="GET")
            file.seek(index * 1000)
            file._kept = b""  # nothing read ahead: the read is a request
            assert file.read(2 << 20) == data[index * 1000 :][: 2 << 20]
            assert proxy.injected[fault] == 2


def test_an_open_file_that_was_replaced_is_an_error(quiet):
    folder, _ = quiet
    locations.write_bytes(folder + "/one", bytes(5 << 20))
    with locations.open_for_reading(folder + "/one") as file:
        locations.write_bytes(folder + "/one", bytes(3 << 20))
        with pytest.raises(ValueError, match="changed while being read"):
            file.read()


@given(
    data=st.binary(max_size=40),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 50)),
            st.tuples(st.just("seek"), st.integers(0, 50)),
            st.tuples(st.just("end"), st.integers(-10, 3)),
            st.tuples(st.just("readline"), st.integers(-1, 20)),
        ),
        max_size=12,
    ),
)
def test_a_file_of_ranges_reads_as_one_in_memory(data, moves):
    mine, other = RangeFile(lambda start, stop: data[start:stop], len(data)), io.BytesIO(data)
    for move, number in moves:
        if move == "seek":
            assert mine.seek(number) == other.seek(number)
        elif move == "end":
            if len(data) + number >= 0:
                assert mine.seek(number, io.SEEK_END) == other.seek(number, io.SEEK_END)
        else:
            assert getattr(mine, move)(number) == getattr(other, move)(number)
        assert mine.tell() == other.tell()


@pytest.mark.parametrize("fault", ["stall", "409 ConditionalRequestConflict", "slow down"])
def test_creating_through_faults(quiet, fault):
    """After a stall the file is ours, though the store says that one is there."""
    folder, proxy = quiet
    proxy.fail_next(fault, method="PUT")
    assert locations.create_exclusively(folder + "/one", b"ours")
    assert proxy.injected[fault] == 1
    assert not locations.create_exclusively(folder + "/one", b"theirs")
    assert locations.read_bytes(folder + "/one") == b"ours"


def uploads(folder):
    filesystem, path = locations.resolve(folder)
    answer = filesystem.call_s3("list_multipart_uploads", Bucket=path.split("/")[0])
    return sorted(upload["Key"] for upload in answer.get("Uploads") or [])


def test_uploads_of_killed_writers_are_aborted_below_the_folder_only(quiet, tmp_path):
    folder, proxy = quiet
    filesystem, path = locations.resolve(folder)
    bucket, key = path.split("/", 1)
    for name in (f"{key}/a", f"{key}/b/c", f"{key}-other/a"):
        filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key=name)
    assert locations.abort_uploads(folder, 10**10) == 0
    proxy.fail_next("slow down", 2)
    assert locations.abort_uploads(folder, 0) == 2
    assert uploads(folder) == [f"{key}-other/a"]
    assert locations.abort_uploads(f"{folder}-other", 0) == 1
    proxy.fail_next("501 NotImplemented")
    assert locations.abort_uploads(folder, 0) == 0
    assert locations.abort_uploads(str(tmp_path), 0) == 0


def test_a_large_put_that_fails_aborts_its_upload(quiet, monkeypatch):
    folder, proxy = quiet
    locations.exists(folder)  # botocore completes its configuration when it connects
    filesystem, _ = locations.resolve(folder)
    in_parts = functools.partial(filesystem.pipe_file, chunksize=5 << 20)
    monkeypatch.setattr(filesystem, "pipe_file", in_parts)
    data = bytes(11 << 20)
    proxy.fail_next("403 AccessDenied", 1, method="PUT", containing="partNumber=2")
    with pytest.raises(UnwritableError):
        locations.write_bytes(folder + "/large", data)
    assert uploads(folder) == []
    proxy.fail_next("500 InternalError", 1, method="PUT", containing="partNumber=3")
    locations.write_bytes(folder + "/large", data)
    assert proxy.injected["500 InternalError"] == 1
    assert uploads(folder) == []
    assert locations.file_entry(folder + "/large").size == len(data)
