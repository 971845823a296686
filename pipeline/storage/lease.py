"""Leases: one writer of a folder at a time, on filesystems and on object stores alike.

A folder's leases are numbered files, `lease/000001.json` and so on; the highest number counts.
Whoever finds it released, expired or abandoned creates the next number, which only one can do
(`locations.create_exclusively`), and deletes the older ones. The holder renews its file four times
in the span of the lease, and has lost it when a higher number is there, when its own file is gone,
or when it did not renew in time, since it was paused or cut off from the store.

A holder that was killed on this machine, in this boot and this space of process numbers, is known
to be gone, and its lease is taken over at once; from any other, the lease is free when it expires.

Clocks: a holder measures its own span with a clock that is never set. A contender compares the
expiry written there with its own wall clock, so clocks that differ make it wait longer or take
over too early by the difference. Then the earlier holder learns it at its next check and publishes
nothing; two never publish unless one is stopped between its check and the write that follows it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType

from pipeline.storage import locations
from pipeline.storage.locations import FileEntry, redact_url
from pipeline.storage.processes import ProcessIdentity

FOLDER = "lease"
_NAME = re.compile(r"^(\d{6,12})\.json$")
_PLAIN = re.compile(r"^[\x20-\x7e]{0,200}$")
_LARGEST_BYTES = 16 << 10
_RENEWALS = 4
_LOOKS = 5
_PAUSE_S = 0.1

_log = logging.getLogger(__name__)


class LeaseHeldError(ValueError):
    """Another run writes to the folder."""


class LeaseLostError(ValueError):
    """The lease that a run held is another's, or expired; it must publish nothing."""


class _DamagedError(ValueError):
    """A lease file is not what a run of ours wrote."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a lease file says."""

    token: str
    run_id: str
    command: str
    host: str
    pid: int
    boot: str
    pid_namespace: str
    started: str
    acquired: str
    renewed: str
    expires: str
    released: bool = False

    @classmethod
    def from_json(cls, data: bytes) -> _Record:
        """Return the record that `data` holds.

        Raises:
            _DamagedError: if it is not one, in any part.
        """
        try:
            values = json.loads(data[: _LARGEST_BYTES + 1])
            record = cls(**values)
            whole = all(
                type(value) is {"pid": int, "released": bool}.get(name, str)
                and (not isinstance(value, str) or _PLAIN.match(value))
                for name, value in values.items()
            ) and all(_moment(text).tzinfo for text in record.times)
        except (ValueError, TypeError, RecursionError) as error:
            raise _DamagedError("no record") from error
        if not whole:
            raise _DamagedError("values of other kinds")
        return record

    def to_json(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(asdict(self), indent=1).encode()

    @property
    def times(self) -> tuple[str, str, str]:
        """When it was acquired, renewed last, and expires."""
        return self.acquired, self.renewed, self.expires

    def free(self) -> bool:
        """Return whether nobody holds it any more."""
        if self.released or _moment(self.expires) <= datetime.now(UTC):
            return True
        return ProcessIdentity(
            host=self.host,
            pid=self.pid,
            boot=self.boot,
            pid_namespace=self.pid_namespace,
            started=self.started,
        ).surely_gone()


class Lease:
    """The right to write to a folder, renewed by a thread until it is released."""

    def __init__(self, root: str, number: int, record: _Record, expires_after_s: float) -> None:
        self.root = root
        self._url = _url(root, number)
        self._number = number
        self._record = record
        self._expires_after_s = expires_after_s
        self._good_until = _clock() + expires_after_s
        self._lost = ""
        self._storing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {FOLDER}", daemon=True)

    @classmethod
    def acquire(
        cls, root: str, *, run_id: str, command: str, expires_after_s: float = 120
    ) -> Lease:
        """Take the lease on a folder and keep renewing it.

        Raises:
            LeaseHeldError: if another holds it, naming who and since when.
            UnwritableError: if the folder cannot be written.
            ValueError: if the latest lease file is damaged, or the store fails or cannot create
                exclusively.
        """
        assert expires_after_s > 0
        number, record = _latest(root)
        if record is not None and not record.free():
            raise LeaseHeldError(_held(root, record))
        own = _own_record(run_id, command, expires_after_s)
        lease = cls(root, number + 1, own, expires_after_s)
        if not locations.create_exclusively(lease._url, own.to_json()):
            raise LeaseHeldError(_held(root, _latest(root)[1]))
        try:
            if lease._overtaken():
                raise LeaseHeldError(_held(root, _latest(root)[1]))
            lease._check_exclusive()
            older = [url for found, url, _ in _numbered(root) if found < lease._number]
            locations.remove_files(older)
        except BaseException:
            with suppress(OSError, ValueError):
                locations.remove(lease._url)
            raise
        lease._thread.start()
        return lease

    def check(self) -> None:
        """Make sure, by asking the store, that the lease is still this run's.

        Raises:
            LeaseLostError: if it is not.
            ValueError: if the store does not answer.
        """
        self._look()
        if self._lost:
            raise LeaseLostError(
                f"this run lost its lease on {redact_url(self.root)}: {self._lost}; it publishes "
                "nothing, start it again once no other writes there"
            )

    def release(self) -> None:
        """Give the lease back and stop renewing it; a store that fails is left to its expiry.

        Its file is marked, so that the numbers go on, or deleted where the disk is full.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        try:
            self._look()
            if not self._lost:
                record = replace(self._record, released=True, renewed=_text(datetime.now(UTC)))
                try:
                    locations.write_bytes(self._url, record.to_json())
                except locations.UnwritableError:
                    locations.remove(self._url)
        except (OSError, ValueError) as error:
            _log.warning("the lease stays until it expires: %s", error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _keep(self) -> None:
        """Renew until released or lost; a renewal that fails is tried again until expiry."""
        wait = self._expires_after_s / _RENEWALS
        while not self._stop.wait(wait) and not self._lost:
            try:
                self._renew()
                wait = self._expires_after_s / _RENEWALS
            except (OSError, ValueError) as error:
                _log.info("a lease could not be renewed: %s", error)
                wait = min(1.0, self._expires_after_s / _RENEWALS / 4)

    def _renew(self) -> None:
        begun, now = _clock(), datetime.now(UTC)
        self._look()
        if self._lost or self._stop.is_set():
            return
        expires = now + timedelta(seconds=self._expires_after_s)
        record = replace(self._record, renewed=_text(now), expires=_text(expires))
        locations.write_bytes(self._url, record.to_json())
        with self._storing:
            if _clock() < self._good_until:
                self._good_until, self._record = begun + self._expires_after_s, record

    def _look(self) -> None:
        """Find out whether the lease is lost; once lost it stays so."""
        if not self._lost and _clock() < self._good_until:
            self._lost = self._found_lost()
        if not self._lost and _clock() >= self._good_until:
            self._lost = f"it was not renewed for {self._expires_after_s:g} seconds"

    def _found_lost(self) -> str:
        if self._overtaken():
            return "another run took it over"
        try:
            there = _read(self._url)
        except _DamagedError:
            return "its file was damaged"
        if there is None:
            return "its file was deleted"
        return "" if there.token == self._record.token else "its file is another run's"

    def _overtaken(self) -> bool:
        return any(number > self._number for number, _, _ in _numbered(self.root))

    def _check_exclusive(self) -> None:
        """Make sure that the store would have refused a second creation, by trying one."""
        second = replace(self._record, token=uuid.uuid4().hex, released=True)
        if locations.create_exclusively(self._url, second.to_json()):
            raise ValueError(
                f"the store of {redact_url(self.root)} creates a file that is there already "
                "(it ignores If-None-Match), so two runs could write at once; use one that has "
                "conditional writes"
            )


def _own_record(run_id: str, command: str, expires_after_s: float) -> _Record:
    now = datetime.now(UTC)
    process = asdict(ProcessIdentity.own())
    texts = {name: _plain(value) for name, value in process.items() if isinstance(value, str)}
    return _Record(
        **{**process, **texts},
        token=uuid.uuid4().hex,
        run_id=_plain(run_id),
        command=_plain(command),
        acquired=_text(now),
        renewed=_text(now),
        expires=_text(now + timedelta(seconds=expires_after_s)),
    )


def _latest(root: str) -> tuple[int, _Record | None]:
    """Return the highest number and what its file says; (0, None) where there is none."""
    number = 0
    for _ in range(_LOOKS):
        found = _numbered(root)
        if not found:
            return 0, None
        number, url, entry = found[-1]
        try:
            if entry.size <= _LARGEST_BYTES and (record := _read(url)):
                return number, record
        except _DamagedError:
            pass  # where files cannot be linked, it may be half written
        time.sleep(_PAUSE_S)
    raise ValueError(
        f"{redact_url(_url(root, number))} is not a lease that can be read; make sure that no run "
        f"writes to {redact_url(root)}, then delete that file"
    )


def _numbered(root: str) -> list[tuple[int, str, FileEntry]]:
    """Return the lease files by number."""
    return sorted(
        (
            (int(match.group(1)), entry.url, entry)
            for entry in locations.list_files(locations.join(root, FOLDER))
            if (match := _NAME.match(entry.name))
        ),
        key=lambda one: one[0],
    )


def _read(url: str) -> _Record | None:
    """Return what a lease file says, None if it is gone.

    Raises:
        _DamagedError: if it is not a lease.
        ValueError: if the store fails.
    """
    try:
        return _Record.from_json(locations.read_bytes(url, 0, _LARGEST_BYTES + 1))
    except FileNotFoundError:
        return None


def _held(root: str, record: _Record | None) -> str:
    if record is None:
        return f"{redact_url(root)} is being written by another run; wait for it or stop it"
    run = record.run_id or "without a name"
    return (
        f"{redact_url(root)} is being written by `{record.command}` (run {run} on "
        f"{record.host}, process {record.pid}) since {record.acquired}; its lease runs until "
        f"{record.expires} unless renewed; wait for it or stop it"
    )


def _url(root: str, number: int) -> str:
    return locations.join_inside(root, f"{FOLDER}/{number:06d}.json")


def _plain(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", redact_url(text))[:200]


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _clock() -> float:
    """Return seconds that nobody sets and that go on while the machine sleeps, where it can."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
