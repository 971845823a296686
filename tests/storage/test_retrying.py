import errno
import io
import os

import pytest

from pipeline.storage import locations, retrying
from pipeline.storage.locations import UnwritableError

PASSING = ["slow down", "reset before", "reset after", "truncate", "500 InternalError", "503 Any"]


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
    assert 0.8 * retrying.DEADLINE_S < sum(waited) < 1.2 * retrying.DEADLINE_S
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


class Clock:
    """A clock that moves when someone sleeps, and by `call_s` in every operation."""

    def __init__(self, monkeypatch, call_s=0.0):
        self.now, self.waits, self.call_s = 0.0, [], call_s
        monkeypatch.setattr(retrying.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retrying.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    def up_after(self, seconds):
        self.now += self.call_s
        if self.now < seconds:
            raise ConnectionResetError("again")
        return self.now


@pytest.mark.parametrize("call_s", [0.0, 5.0, 60.0])
def test_an_outage_is_survived_for_nearly_the_whole_deadline(monkeypatch, call_s):
    clock = Clock(monkeypatch, call_s)
    deadline = retrying.DEADLINE_S
    assert retrying.retried(lambda: clock.up_after(0.8 * deadline)) >= 0.8 * deadline
    assert all(wait <= 16 for wait in clock.waits)
    clock.now = 0.0
    with pytest.raises(ConnectionResetError):
        retrying.retried(lambda: clock.up_after(1000))
    assert 0.8 * deadline < clock.now <= deadline + call_s
