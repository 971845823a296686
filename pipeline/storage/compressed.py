"""Files of lines as they come, plain or compressed: read as the lines that are in them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.formats import compression
from pipeline.storage import locations
from pipeline.storage.errors import StoreError
from pipeline.storage.locations import redact_url

_SKIPPED_BYTES = 8 * 2**20


def open_lines(url: str) -> Any:
    """Return an open binary file of what a file holds once unpacked; read forward only.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be opened.
    """
    file = locations.open_for_reading(url)
    kind = compression(url)
    return file if kind is None else io.BufferedReader(_Unpacked(file, kind, url))


def read_lines(url: str, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of what a file holds once unpacked.

    A compressed file is unpacked from its beginning, or from where this process last stopped.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or is damaged.
    """
    if compression(url) is None:
        return locations.read_bytes(url, start, stop)
    return _last.read(url, start, stop)


class _Unpacked(io.RawIOBase):
    """A compressed file as the bytes that are in it."""

    def __init__(self, file: Any, kind: str, url: str) -> None:
        self._url = redact_url(url)
        self._file = file
        with self._explained():
            self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), kind)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; raises ValueError if the file is damaged or cut short."""
        with self._explained():
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (pa.ArrowException, OSError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self._url} is damaged or cut short: {line}") from error


class _LastOpened:
    """The compressed file that this process read last, open where the reading stopped.

    Units of one file come one after the other, and unpacking all before each would take time that
    grows with the square of the file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[str, str] | None = None
        self._file, self._position = io.BytesIO(), 0

    def read(self, url: str, start: int, stop: int) -> bytes:
        """Return bytes [start, stop); what they are worth, the digest of a unit tells."""
        with self._lock:
            identity = locations.file_entry(url).identity
            if self._known is None or self._known != (url, identity) or start < self._position:
                self._file.close()
                self._file, self._position = open_lines(url), 0
            self._known = None  # where it stands is not known once reading fails
            while self._position < start:
                skipped = self._file.read(min(_SKIPPED_BYTES, start - self._position))
                if not skipped:
                    break
                self._position += len(skipped)
            data = bytes(self._file.read(stop - start))
            self._position += len(data)
            self._known = None if identity is None else (url, identity)
            return data


_last = _LastOpened()
