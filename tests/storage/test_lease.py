import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.storage import locations
from pipeline.storage.lease import Lease, LeaseHeldError, LeaseLostError
from pipeline.storage.processes import ProcessIdentity


def acquire(root, **options):
    return Lease.acquire(root, **{"run_id": "run-1", "command": "nightly", **options})


def files(root):
    return [entry.name for entry in locations.list_files(locations.join(root, "lease"))]


def content(root, name="000001.json"):
    return json.loads(locations.read_bytes(locations.join(root, "lease", name)))


def rewrite(root, name="000001.json", **values):
    data = json.dumps({**content(root, name), **values}).encode()
    locations.write_bytes(locations.join(root, "lease", name), data)


def ago(seconds):
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


HOLDER = """
import sys, time
from pipeline.storage.lease import Lease, LeaseHeldError, LeaseLostError
root, run_id, span = sys.argv[1], sys.argv[2], float(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = Lease.acquire(root, run_id=run_id, command="nightly", expires_after_s=span)
except LeaseHeldError:
    print("refused", flush=True)
    sys.exit()
print("won", flush=True)
sys.stdin.readline()
try:
    lease.check()
    print("held", flush=True)
except LeaseLostError as error:
    print(error, flush=True)
lease.release()
"""


class Holder:
    """Another process that acquires at the first word and checks and releases at the second."""

    def __init__(self, root, run_id, span=120.0):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, root, run_id, str(span)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self):
        return self.process.stdout.readline().strip()

    def tell(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holders():
    started = []

    def start(*arguments):
        started.append(Holder(*arguments))
        return started[-1]

    yield start
    for holder in started:
        holder.end()


def test_released_and_acquired_again_the_numbers_go_on(place):
    for number in (1, 2, 3):
        with acquire(place) as lease:
            lease.check()
            assert files(place) == [f"{number:06d}.json"]
            assert not content(place, f"{number:06d}.json")["released"]
        assert content(place, f"{number:06d}.json")["released"]


def test_a_live_holder_is_named(place):
    with acquire(place, run_id="run-7") as lease:
        since = content(place)["acquired"]
        with pytest.raises(LeaseHeldError) as caught:
            acquire(place)
        message = str(caught.value)
        for part in (place, "`nightly`", "run-7", str(os.getpid()), since, "wait for it or stop"):
            assert part in message
        assert "\n" not in message
        lease.check()
        assert files(place) == ["000001.json"]


def test_of_eight_that_race_exactly_one_wins(place, holders):
    """Over a lease that has expired, which is where a careless takeover would let two in."""
    acquire(place).release()
    contenders = [holders(place, f"run-{index}") for index in range(8)]
    assert [holder.hear() for holder in contenders] == ["ready"] * 8
    for holder in contenders:
        holder.tell()
    answers = [holder.hear() for holder in contenders]
    assert sorted(answers) == ["refused"] * 7 + ["won"]
    winner = contenders[answers.index("won")]
    winner.tell()
    assert winner.hear() == "held"
    winner.process.wait(30)
    with acquire(place):
        pass


def test_threads_that_race_over_an_expired_lease(place):
    acquire(place).release()
    won, errors = [], []
    barrier = threading.Barrier(4)

    def contend(index):
        barrier.wait()
        try:
            won.append(acquire(place, run_id=f"run-{index}"))
        except LeaseHeldError as error:
            errors.append(error)

    threads = [threading.Thread(target=contend, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(errors)) == (1, 3)
    won[0].check()
    won[0].release()


def test_a_killed_holder_is_followed_at_once(place, holders):
    holder = holders(place, "run-killed")
    holder.hear()
    holder.tell()
    assert holder.hear() == "won"
    with pytest.raises(LeaseHeldError, match="run-killed"):
        acquire(place)
    holder.process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while "Z" not in open(f"/proc/{holder.process.pid}/stat").read().rpartition(")")[2]:  # noqa: SIM115,PTH123
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with acquire(place) as lease:  # it lies there unreaped, and counts as dead nonetheless
        lease.check()


@pytest.mark.parametrize(
    "elsewhere", [{"host": "other"}, {"boot": "other"}, {"pid_namespace": "pid:[1]"}]
)
def test_a_holder_elsewhere_is_followed_when_it_has_expired(place, elsewhere):
    acquire(place)._stop.set()  # the thread ends, and the file stays as a lost machine leaves it
    gone = {"pid": 2**22 + 1, "started": "1", **elsewhere}
    rewrite(place, **gone)
    with pytest.raises(LeaseHeldError):
        acquire(place)
    rewrite(place, **gone, expires=ago(1))
    with acquire(place, run_id="next"):
        assert files(place) == ["000002.json"]


def test_a_reused_process_number_is_another_process(place):
    acquire(place)._stop.set()
    with pytest.raises(LeaseHeldError):
        acquire(place)
    rewrite(place, started="1")
    with acquire(place):
        pass


def test_this_process_is_not_gone_and_an_unknown_one_is_not_surely():
    own = ProcessIdentity.own()
    assert not own.surely_gone()
    nothing = ProcessIdentity(host=own.host, pid=2**22 + 1, boot="", pid_namespace="", started="")
    assert not nothing.surely_gone()


def test_renewal_extends(tmp_path):
    with acquire(str(tmp_path), expires_after_s=0.6) as lease:
        first = content(str(tmp_path))["expires"]
        time.sleep(1.2)
        lease.check()
        assert content(str(tmp_path))["expires"] > first
        with pytest.raises(LeaseHeldError):
            acquire(str(tmp_path))


def test_a_paused_holder_notices_that_another_took_over(tmp_path, holders):
    holder = holders(str(tmp_path), "run-paused", 1.0)
    holder.hear()
    holder.tell()
    assert holder.hear() == "won"
    os.kill(holder.process.pid, signal.SIGSTOP)
    time.sleep(1.1)
    with acquire(str(tmp_path), run_id="run-next") as lease:
        os.kill(holder.process.pid, signal.SIGCONT)
        holder.tell()
        assert "lost its lease" in holder.hear()
        holder.process.wait(30)
        lease.check()
        assert content(str(tmp_path), "000002.json")["run_id"] == "run-next"
        assert not content(str(tmp_path), "000002.json")["released"]


def lose_to_another(root):
    successor = {**content(root), "run_id": "next", "token": "0"}
    where = locations.join(root, "lease", "000002.json")
    locations.write_bytes(where, json.dumps(successor).encode())


def lose_the_file(root):
    locations.remove(locations.join(root, "lease", "000001.json"))


def lose_the_content(root):
    locations.write_bytes(locations.join(root, "lease", "000001.json"), b"{")


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (lose_to_another, "another run took it over"),
        (lose_the_file, "its file was deleted"),
        (lose_the_content, "its file was damaged"),
        (lambda root: rewrite(root, token="0"), "its file is another run's"),
    ],
)
def test_a_lost_lease_is_noticed_and_never_written_again(place, lose, why):
    lease = acquire(place)
    lease.check()
    lose(place)
    before = {name: locations.read_bytes(f"{place}/lease/{name}") for name in files(place)}
    with pytest.raises(LeaseLostError, match=why):
        lease.check()
    lease.release()
    with pytest.raises(LeaseLostError, match=why):
        lease.check()
    after = {name: locations.read_bytes(f"{place}/lease/{name}") for name in files(place)}
    assert after == before


def test_without_renewal_it_expires_for_its_holder_too(tmp_path, monkeypatch):
    lease = acquire(str(tmp_path), expires_after_s=0.4)
    monkeypatch.setattr(Lease, "_renew", lambda self: None)
    time.sleep(0.5)
    with pytest.raises(LeaseLostError, match=r"not renewed for 0\.4 seconds"):
        lease.check()
    lease.release()


def test_a_renewal_that_fails_is_tried_again(tmp_path, monkeypatch):
    whole, failures = locations.write_bytes, []

    def fail_twice(url, data):
        if len(failures) < 2:
            failures.append(url)
            raise ValueError("the store is away")
        whole(url, data)

    with acquire(str(tmp_path), expires_after_s=1.0) as lease:
        monkeypatch.setattr(locations, "write_bytes", fail_twice)
        time.sleep(1.5)
        assert len(failures) == 2
        lease.check()


def test_release_keeps_the_error_under_way(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("the store is away")

    def work():
        with acquire(str(tmp_path)):
            monkeypatch.setattr(locations, "write_bytes", fail)
            raise KeyError("under way")

    with pytest.raises(KeyError, match="under way"):
        work()
    assert not content(str(tmp_path))["released"]


def hostile(data):
    yield from (b"", b"{", b"[]", b"null", b"[" * 9999, b"\xff", b"{}", b" " * 100_000)
    for values in (
        {"pid": "1"},
        {"pid": True},
        {"released": 0},
        {"host": "a\nb"},
        {"host": "\x1b[2J"},
        {"command": "x" * 300},
        {"expires": "tomorrow"},
        {"expires": "2030-01-01T00:00:00"},
        {"unknown": 1},
    ):
        yield json.dumps({**data, **values}).encode()


def test_a_damaged_lease_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.lease._PAUSE_S", 0)
    acquire(str(tmp_path)).release()
    where = tmp_path / "lease" / "000001.json"
    for data in list(hostile(content(str(tmp_path)))):
        where.write_bytes(data)
        with pytest.raises(ValueError, match=r"000001\.json is not a lease.*delete that file") as e:
            acquire(str(tmp_path))
        assert not isinstance(e.value, LeaseHeldError)
        assert "\n" not in str(e.value)
    where.unlink()
    acquire(str(tmp_path)).release()


def test_names_of_a_hostile_caller_stay_plain(tmp_path):
    with acquire(str(tmp_path), run_id="a\nb\x1b", command="s3://id:secret@x/y " + "c" * 500):
        assert content(str(tmp_path))["run_id"] == "a?b?"
        assert content(str(tmp_path))["command"].startswith("s3://***@x/y c")
        with pytest.raises(LeaseHeldError):
            acquire(str(tmp_path))


def test_a_lease_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "lease").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        acquire(str(tmp_path / "root"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_put_whose_answer_was_lost_is_found_to_be_ours(bucket_folder, object_store):
    object_store.proxy.share = 0
    object_store.proxy.fail_next("stall", method="PUT")
    with acquire(bucket_folder) as lease:
        lease.check()
    assert object_store.proxy.injected["stall"] == 1


def test_a_store_that_overwrites_on_exclusive_creation_is_refused(tmp_path, monkeypatch):
    def careless(url, data):
        locations.write_bytes(url, data)
        return True

    monkeypatch.setattr(locations, "create_exclusively", careless)
    with pytest.raises(ValueError, match="two runs could write at once"):
        acquire(str(tmp_path))
    assert files(str(tmp_path)) == []


def test_a_latecomer_withdraws(tmp_path, monkeypatch):
    """It had found no lease; then one came, ended and was followed by a second, which holds."""
    whole = locations.create_exclusively

    def late(url, data):
        monkeypatch.setattr(locations, "create_exclusively", whole)
        acquire(str(tmp_path), run_id="first").release()
        late.holder = acquire(str(tmp_path), run_id="second")
        return whole(url, data)

    monkeypatch.setattr(locations, "create_exclusively", late)
    with pytest.raises(LeaseHeldError, match="second"):
        acquire(str(tmp_path), run_id="late")
    assert files(str(tmp_path)) == ["000002.json"]
    late.holder.check()
    late.holder.release()
