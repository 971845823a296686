import errno
import functools
import io
import os
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import locations, retrying
from pipeline.storage.locations import UnwritableError
from pipeline.storage.object_stores import RangeFile


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


PASSING = ["slow down", "reset before", "reset after", "truncate", "500 InternalError", "503 Any"]


@pytest.fixture
def quiet(object_store, bucket_folder, monkeypatch):
    """Return a bucket folder whose requests fail only as the test says, and the proxy.

    s3fs tries nothing again by itself, so that what survives a fault does so by our doing.
    """
    import s3fs

    object_store.proxy.share = 0
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    return bucket_folder, object_store.proxy


def test_all_operations_at_every_place(place):
    where = locations.join(place, "a", "b?[x]*.bin")
    assert not locations.exists(where)
    assert not locations.is_folder(place + "/a")
    locations.write_bytes(where, b"0123456789")
    locations.write_bytes(where, b"9876543210")
    assert locations.exists(where)
    assert locations.is_folder(place + "/a")
    assert locations.read_bytes(where) == b"9876543210"
    assert locations.read_bytes(where, 2, 5) == b"765"
    assert locations.read_bytes(where, 8) == b"10"
    assert locations.read_bytes(where, 8, 99) == b"10"
    assert locations.read_bytes(where, 5, 5) == b""
    (entry,) = locations.list_files(place)
    assert (entry.url, entry.name, entry.size) == (where, "a/b?[x]*.bin", 10)
    assert [found.url for found in locations.glob_files(place + "/a/b*.bin")] == [where]
    locations.remove(where)
    locations.remove(where)
    assert not locations.exists(where)
    assert locations.list_files(place) == []
    for missing in (where, place):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            locations.file_entry(missing)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        locations.open_for_reading(where)


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


def test_identity_changes_with_the_content(place):
    url = locations.join(place, "one.bin")
    locations.write_bytes(url, b"same")
    first = locations.file_entry(url)
    assert first.identity
    assert locations.list_files(place)[0].identity == first.identity
    assert locations.glob_files(place + "/*.bin")[0].identity == first.identity
    assert locations.file_entry(url) == first
    locations.write_bytes(url, b"else")
    assert locations.file_entry(url).identity != first.identity


def test_identity_of_a_local_file_sees_a_change_whose_time_was_set_back(tmp_path):
    path = tmp_path / "one"
    path.write_bytes(b"same")
    before, status = locations.file_entry(str(path)), path.stat()
    path.write_bytes(b"else")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert locations.file_entry(str(path)).identity != before.identity


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


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(quiet, fault):
    folder, proxy = quiet
    url = locations.join(folder, "one.bin")
    data = os.urandom(5000)
    operations = {
        "PUT": lambda: locations.write_bytes(url, data) is None,
        "GET": lambda: locations.read_bytes(url) == data,
        "HEAD": lambda: locations.exists(url) and locations.file_entry(url).size == 5000,
        "list": lambda: len(locations.list_files(folder)) == 1,
        "range": lambda: locations.read_bytes(url, 10, 4000) == data[10:4000],
        "POST": lambda: locations.remove(url) is None,
    }
    for name, operation in operations.items():
        proxy.fail_next(fault, 2, method={"list": "GET", "range": "GET"}.get(name, name))
        assert operation(), name
        assert proxy.injected[fault] == 2, name
        proxy.injected.clear()
    assert not locations.exists(url)


def test_an_answer_that_comes_too_late_is_asked_for_again(quiet):
    folder, proxy = quiet
    locations.write_bytes(folder + "/one", b"1")
    proxy.fail_next("stall", method="GET")
    assert locations.read_bytes(folder + "/one") == b"1"
    assert proxy.injected["stall"] == 1


def test_half_of_all_requests_may_fail(quiet):
    folder, proxy = quiet
    proxy.share, proxy.faults = 0.5, ("slow down", "reset before", "reset after", "truncate")
    contents = {f"{index:02d}": bytes([index]) * 1000 for index in range(12)}
    for name, data in contents.items():
        locations.write_bytes(locations.join(folder, name), data)
    listed = locations.list_files(folder)
    assert {entry.name: locations.read_bytes(entry.url) for entry in listed} == contents
    assert sum(proxy.injected.values()) > 10


@pytest.mark.parametrize("fault", ["403 AccessDenied", "404 NoSuchBucket", "400 InvalidToken"])
def test_what_does_not_pass_is_not_tried_again(quiet, fault):
    folder, proxy = quiet
    proxy.fail_next(fault, 50)
    proxy.requests.clear()
    with pytest.raises(ValueError, match="cannot write") as caught:
        locations.write_bytes(folder + "/one", b"1")
    assert isinstance(caught.value, UnwritableError) == (fault != "400 InvalidToken")
    with pytest.raises((ValueError, FileNotFoundError)):
        locations.read_bytes(folder + "/one")
    assert sum(proxy.requests.values()) == 2


def test_trying_again_ends(monkeypatch):
    waited, calls = [], []
    monkeypatch.setattr(retrying.time, "sleep", waited.append)

    def fail():
        calls.append(1)
        raise ConnectionResetError("again")

    with pytest.raises(ConnectionResetError):
        retrying.retried(fail)
    assert len(calls) == retrying.TRIES
    assert len(waited) == retrying.TRIES - 1
    assert 10 < sum(waited) < retrying.DEADLINE_S
    assert waited[0] < 0.2


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (TimeoutError(), True),
        (OSError(errno.EIO, "input/output error"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (OSError(errno.ENOSPC, "no space"), False),
        (PermissionError("AccessDenied"), False),
        (FileNotFoundError("x"), False),
        (ValueError("x"), False),
        (KeyError("x"), False),
    ],
)
def test_which_errors_pass(error, passes):
    assert retrying.is_transient(error) == passes


def test_which_errors_of_the_client_libraries_pass():
    import aiohttp
    from botocore import exceptions

    for error in (
        aiohttp.ClientPayloadError("cut"),
        aiohttp.ServerDisconnectedError(),
        exceptions.ReadTimeoutError(endpoint_url="x"),
        exceptions.EndpointConnectionError(endpoint_url="x"),
        exceptions.ResponseStreamingError(error="x"),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ):
        assert retrying.is_transient(error), error
        wrapped = OSError("wrapped")
        wrapped.__cause__ = error
        assert retrying.is_transient(wrapped), error
    for error in (
        exceptions.NoCredentialsError(),
        exceptions.ParamValidationError(report="x"),
        exceptions.SSLError(endpoint_url="x", error="certificate"),
    ):
        assert not retrying.is_transient(error), error


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


def test_parquet_is_read_through_a_failing_store(quiet):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, proxy = quiet
    table = pa.table({"a": list(range(200_000)), "b": [str(i) * 3 for i in range(200_000)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=20_000)
    locations.write_bytes(folder + "/x.parquet", sink.getvalue())
    proxy.share, proxy.faults = 0.5, ("slow down", "reset before", "truncate")
    with locations.open_for_reading(folder + "/x.parquet") as file:
        assert pq.ParquetFile(file).read().equals(table)


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


def test_of_many_creators_one_wins(place):
    for round_ in range(3 if place.startswith("s3:") else 30):
        url = locations.join(place, str(round_), "one.json")
        barrier = threading.Barrier(4)
        won = []

        def create(index, url=url, barrier=barrier, won=won):
            barrier.wait()
            if locations.create_exclusively(url, b"%d" % index):
                won.append(index)

        threads = [threading.Thread(target=create, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [locations.read_bytes(url)] == [b"%d" % index for index in won]
        assert [entry.name for entry in locations.list_files(place + f"/{round_}")] == ["one.json"]


@pytest.mark.parametrize("fault", ["stall", "409 ConditionalRequestConflict", "slow down"])
def test_creating_through_faults(quiet, fault):
    """After a stall the file is ours, though the store says that one is there."""
    folder, proxy = quiet
    proxy.fail_next(fault, method="PUT")
    assert locations.create_exclusively(folder + "/one", b"ours")
    assert proxy.injected[fault] == 1
    assert not locations.create_exclusively(folder + "/one", b"theirs")
    assert locations.read_bytes(folder + "/one") == b"ours"


def test_creating_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    url = str(tmp_path / "one")
    assert locations.create_exclusively(url, b"ours")
    assert not locations.create_exclusively(url, b"theirs")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"ours"]


def test_creating_in_memory():
    url = f"memory://{uuid.uuid4().hex}/one"
    assert locations.create_exclusively(url, b"ours")
    assert not locations.create_exclusively(url, b"theirs")
    assert locations.read_bytes(url) == b"ours"


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


def test_links_below_a_root_are_refused_and_the_root_may_be_one(tmp_path):
    real, outside = tmp_path / "real", tmp_path / "outside"
    (real / "data").mkdir(parents=True)
    outside.mkdir()
    (outside / "x").write_bytes(b"outside")
    (tmp_path / "root").symlink_to(real)
    root = str(tmp_path / "root")
    (real / "data" / "file").symlink_to(outside / "x")
    (real / "folder").symlink_to(outside)
    (real / "dangling").symlink_to(outside / "none")
    for relative in ("data/file", "folder/x", "folder/new/x", "dangling"):
        for shape in (root, f"file://{root}"):
            with pytest.raises(ValueError, match=r"symbolic link.*refused"):
                locations.join_inside(shape, relative)
    assert locations.join_inside(root, "data/new/x") == f"{root}/data/new/x"


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
