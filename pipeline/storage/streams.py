"""Files that are written as they are made, since they need not fit in memory."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.errors import writing
from pipeline.storage.places import resolve
from pipeline.storage.retrying import retried

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """A file that was written: its bytes, and their sha256."""

    bytes: int
    sha256: str


def write_stream(url: str, pieces: Callable[[], Iterable[bytes]]) -> Written:
    """Write a file piece by piece so that a reader sees all of it or nothing.

    `pieces` is called again when the store fails for a moment, and must give the same each time.
    Locally a temporary name is renamed; on an object store the parts of one upload are joined.

    Raises:
        UnwritableError: if the place is full, read-only or forbidden, or its bucket is missing.
        ValueError: if it cannot be written for another reason, or as `pieces` does.
    """
    filesystem, path = resolve(url)
    failed: list[Exception] = []

    def source() -> Iterable[bytes]:
        try:
            yield from pieces()
        except Exception as error:  # the reader's, not the writer's
            failed.append(error)
            raise

    def write() -> Written:
        failed.clear()
        if isinstance(filesystem, LocalFileSystem):
            return _write_local(Path(path), source())
        return _write_remote(filesystem, path, source())

    try:
        with writing(url):
            return retried(write)
    except ValueError:
        if failed:
            raise failed[-1] from None
        raise


def remove_empty_folder(url: str) -> None:
    """Delete a local folder that is empty; anything else is left alone."""
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem):
        with suppress(OSError):
            Path(path).rmdir()


def _write_local(path: Path, pieces: Iterable[bytes]) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            written = _copied(file, pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _write_remote(filesystem: Any, path: str, pieces: Iterable[bytes]) -> Written:
    file = filesystem.open(path, "wb")
    try:
        written = _copied(file, pieces)
        file.close()
    except BaseException:
        # Closing would publish what there is; the upload is given up instead.
        with suppress(Exception):
            retried(file.discard)
        with suppress(AttributeError):
            file.closed = True
        raise
    return written


def _copied(file: Any, pieces: Iterable[bytes]) -> Written:
    """Write pieces, gathered to a megabyte, and return what was written."""
    digest, size, waiting = hashlib.sha256(), 0, bytearray()
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
        waiting += piece
        if len(waiting) >= _PIECE_BYTES:
            file.write(bytes(waiting))
            waiting.clear()
    file.write(bytes(waiting))
    return Written(size, digest.hexdigest())
