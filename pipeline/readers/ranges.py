"""Many short reads of files: one system call each on this machine, few long requests elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage import locations

Range = tuple[int, int]
"""The bytes [start, stop) of a file."""

_AT_ONCE = 16
_HASHED_AT_ONCE = 2**22
_GAP_BYTES = 32 * 2**10
_LONGEST_BYTES = 2**20
"""Ranges of a remote file closer than the gap become one request of no more than this."""


class ChangedFileError(ValueError):
    """A file has another size than when it was written."""


class RangeReader:
    """Reads ranges of the files of a folder, `most_open` of them open at once.

    Safe to use after a fork: a read says where it begins, no position is shared. Open files are
    not pickled.
    """

    def __init__(self, root: str, most_open: int) -> None:
        self._root, self._most_open = root, most_open
        self._files: OrderedDict[str, LocalFile | RemoteFile] = OrderedDict()

    def file(self, path: str, size: int) -> LocalFile | RemoteFile:
        """Return a file of the folder, opened if it is not, after a look at its size.

        Raises:
            FileNotFoundError: if there is none.
            ChangedFileError: if it has another size.
            ValueError: if it cannot be opened.
        """
        found = self._files.get(path)
        if found is None:
            url = locations.join_inside(self._root, path)
            filesystem, where = locations.resolve(url)
            local = isinstance(filesystem, LocalFileSystem)
            found = LocalFile(where) if local else RemoteFile(url)
            if found.size != size:
                raise ChangedFileError(f"it has {found.size} bytes, not the {size} it had")
            self._files[path] = found
            while len(self._files) > self._most_open:
                self._files.popitem(last=False)  # closed when its last user is done
        else:
            self._files.move_to_end(path)
        return found

    def __getstate__(self) -> tuple[str, int]:
        return self._root, self._most_open

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed with its last user)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop).

        Raises:
            OSError: if they cannot be read.
        """
        data = os.pread(self._file.fileno(), stop - start, start)
        if len(data) != stop - start:
            raise OSError("it was cut short")
        return data

    def sha256(self) -> str:
        """Return the digest of the whole file, read a few MB at a time."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _HASHED_AT_ONCE):
            digest.update(self.read(start, min(start + _HASHED_AT_ONCE, self.size)))
        return digest.hexdigest()

    def read_each(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Yield each range's bytes."""
        for start, stop in ranges:
            yield self.read(start, stop)

    def read_rows(self, offsets: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the bytes at its offset.

        Raises:
            OSError: if they cannot be read.
        """
        descriptor = self._file.fileno()
        for offset, row in zip(offsets, rows, strict=True):
            if os.preadv(descriptor, [row], offset) != len(row):
                raise OSError("it was cut short")


class RemoteFile:
    """A file of any other store that fsspec knows."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.size = locations.file_entry(url).size

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop).

        Raises:
            OSError: if there are fewer.
            ValueError: if the store fails.
        """
        data = locations.read_bytes(self._url, start, stop)
        if len(data) != stop - start:
            raise OSError("it was cut short")
        return data

    def read_each(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Yield each range's bytes; ranges in ascending order, near ones share a request."""
        requests = list(_merged(ranges))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = zip(requests, pool.map(lambda one: self.read(*one), requests), strict=True)
            (first, last), data = next(answers, ((0, 0), b""))
            for start, stop in ranges:
                while stop > last:
                    (first, last), data = next(answers)
                yield data[start - first : stop - first]

    def read_rows(self, offsets: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Fill each row with the bytes at its offset, offsets in ascending order."""
        ranges = [(at, at + len(row)) for at, row in zip(offsets, rows, strict=True)]
        for row, data in zip(rows, self.read_each(ranges), strict=True):
            row[:] = data


def _merged(ranges: Sequence[Range]) -> Iterator[Range]:
    first = last = -1
    for start, stop in ranges:
        if last >= 0 and start - last <= _GAP_BYTES and stop - first <= _LONGEST_BYTES:
            last = max(last, stop)
            continue
        if last >= 0:
            yield first, last
        first, last = start, stop
    if last >= 0:
        yield first, last
