"""Tar files of samples, as WebDataset has them: read once from end to end, cut between samples.

Nothing is unpacked, and no link is followed.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.storage.locations import StoreError, redact_url
from pipeline.storage.slices import UNIT_BYTES

_MOST_HEADER = 2**20
"""Bytes of one long name or extended header; a damaged or forged one would take all memory."""
_SKIPPED = 2**20
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_METADATA = re.compile(r"__[^/]*__($|/)")
_GLOBAL = frozenset({"path", "linkpath", "size", "hdrcharset"})
"""What a global header must not say: a reader of later samples alone would not know of it."""
_TAR_ERRORS = (
    tarfile.TarError,
    ValueError,
    IndexError,
    OverflowError,
    RecursionError,
    UnicodeError,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar: its sample's key, its extension in lower case, where its bytes are.

    `whole` is false for a link, a device or a file with holes: it has no bytes of its own.
    """

    key: str
    extension: str
    offset: int
    data_start: int
    data_stop: int
    whole: bool


def member_of(info: tarfile.TarInfo) -> Member | None:
    """Return a tar's entry as a member of a sample; None for what WebDataset passes over too.

    That is folders, names without a key or an extension, and `__metadata__`.
    """
    if info.isdir() or _METADATA.match(info.name):
        return None
    named = _KEY.fullmatch(info.name)
    if named is None:
        return None
    whole = info.isreg() and not info.issparse()
    return Member(
        key=named[1],
        extension=named[2].lower(),
        offset=info.offset,
        data_start=info.offset_data,
        data_stop=info.offset_data + (info.size if whole else 0),
        whole=whole,
    )


@contextmanager
def readable_tar(url: str) -> Iterator[None]:
    """Turn what a damaged tar makes its parser raise into one error that names it.

    Raises:
        ValueError: if it cannot be made out.
        StoreError: if its store fails.
    """
    try:
        yield
    except StoreError:
        raise
    except _TAR_ERRORS as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{redact_url(url)} is not a readable tar: {what}") from error


class TarScan:
    """A tar read from its beginning to its end, every byte once, and digested by stretches.

    Usable as the file of a `tarfile.TarFile`, which seeks forward only. `end` is where the last
    member stops, known when all were read.
    """

    def __init__(self, file: Any) -> None:
        self.end = 0
        self._file = file
        self._position = 0
        self._digest = hashlib.blake2b(digest_size=20)
        self._pending = b""
        self._last = b""

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int) -> bytes:
        """Return the next bytes, a header or a long name.

        Raises:
            tarfile.ReadError: if they are more than any that is honest.
        """
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self._position}")
        self._last = self.data(size)
        return self._last

    def data(self, size: int) -> bytes:
        """Return the next bytes, of a member; fewer where the file ends."""
        found: bytes = self._file.read(size)
        self._position += len(found)
        self._pending += found
        return found

    def seek(self, position: int) -> int:
        """Pass over the bytes before a position, the rest of a member; stops where the file ends.

        Raises:
            tarfile.ReadError: if it lies behind.
        """
        if position < self._position:
            raise tarfile.ReadError(f"a size below zero before byte {self._position}")
        self.settle()
        while self._position < position:
            chunk = self._file.read(min(_SKIPPED, position - self._position))
            if not chunk:
                break
            self._digest.update(chunk)
            self._position += len(chunk)
        return self._position

    def settle(self) -> None:
        """Say that no stretch stops in what was read so far: it is of the member just read."""
        self._digest.update(self._pending)
        self._pending = b""

    def stretch(self, stop: int) -> str:
        """Return the digest of the bytes from where the last stretch stopped up to `stop`.

        `stop` lies in what was read since `settle`.
        """
        here = len(self._pending) - (self._position - stop)
        assert 0 <= here <= len(self._pending), "no sample begins inside a member"
        self._digest.update(self._pending[:here])
        found = self._digest.hexdigest()
        self._digest = hashlib.blake2b(digest_size=20)
        self._pending = self._pending[here:]
        return found

    def check_end(self) -> None:
        """Make sure that what ended the tar is its end mark, and that only padding follows.

        Raises:
            tarfile.ReadError: if it was cut short, is damaged, or holds more.
        """
        if not self._last:
            raise tarfile.ReadError("it ends without an end mark: it was cut short")
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header at byte {self._position - len(self._last)}")
        while chunk := self._file.read(_SKIPPED):
            if chunk.count(0) != len(chunk):
                raise tarfile.ReadError(
                    "there is more behind its end mark, as where tars were joined; unpack it and "
                    "pack it as one"
                )


def scan_members(scan: TarScan) -> Iterator[Member]:
    """Yield the members of a tar, in order; after each its bytes can be read with `scan.data`.

    Raises:
        tarfile.TarError: if it is damaged, cut short, packed, or has a member of more than
            UNIT_BYTES bytes.
        ValueError, IndexError, OverflowError, RecursionError: as its parser does where damaged.
    """
    opened: Any = tarfile.open  # which takes anything that reads and seeks
    with opened(fileobj=scan, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            if strange := _GLOBAL & tar.pax_headers.keys():
                raise tarfile.ReadError(f"a global header that sets {', '.join(sorted(strange))}")
            if info.size > UNIT_BYTES:
                raise tarfile.ReadError(
                    f"a member of {info.size >> 20} MiB, more than the {UNIT_BYTES >> 20} that "
                    f"are read of one ({info.name!a})"
                )
            if (member := member_of(info)) is not None:
                yield member
            scan.settle()
        scan.end = tar.offset
    scan.check_end()
