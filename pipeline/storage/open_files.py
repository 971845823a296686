"""Open files whose every read is safe from what passes."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

from pipeline.storage.errors import reading
from pipeline.storage.retrying import retried


class CheckedFile(io.RawIOBase):
    """An open file whose failing reads are tried again, and then are the store's failure.

    A parser that reads through it can raise errors of its own only.
    """

    def __init__(self, file: Any, url: str) -> None:
        super().__init__()
        self._file = file
        self._url = url

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return how many bytes it got.

        Raises:
            StoreError: if the file cannot be read.
        """
        with reading(self._url):
            return retried(partial(self._read_at, self.tell(), buffer))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _read_at(self, position: int, buffer: Any) -> int:
        self._file.seek(position)
        return int(self._file.readinto(buffer))
