"""A slice of a file, what a file tells about itself, and the digests that know it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from pipeline.storage import locations
from pipeline.storage.corpus import Unit
from pipeline.storage.locations import FileEntry, listed, redact_url

CHUNK_BYTES = 8 * 2**20
UNIT_BYTES = 256 * 2**20
"""Units of image files or tar samples end here, however few they are: they are held in memory."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows [start, stop) of a file, their bytes where the format has such, their digest.

    In a shard of ours `source_path` and its rows say what it was made from; of a folder of images
    `members` are the files' names in it.
    """

    start: int
    stop: int
    digest: str
    byte_start: int = 0
    byte_stop: int = 0
    source_path: str = ""
    source_start: int = 0
    source_stop: int = 0
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file's slices, whether it names its rows, its embedding width, its passed-through types."""

    slices: tuple[Slice, ...]
    has_ids: bool = False
    dimension: int | None = None
    passed_through: pa.Schema | None = None
    ids_path: str | None = None


def file_digest(url: str) -> str:
    """Return the digest of a whole file's bytes."""
    digest = hashlib.blake2b(digest_size=20)
    with locations.open_for_reading(url) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def combined(*parts: object) -> str:
    """Return the digest of a few plain values."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()


def identity_of(entry: FileEntry, ids_path: str | None) -> str | None:
    """Return what a file and its ids file are known by on every machine; None if nothing tells."""
    found = entry.shared_identity
    if found is None or ids_path is None:
        return found
    ids = locations.file_entry(ids_path).shared_identity
    return None if ids is None else combined(found, ids)


@contextmanager
def unchanged(unit: Unit, digest_of: Callable[[Unit], str]) -> Iterator[None]:
    """Make sure that a unit's file is the planned one before and after what is done inside.

    Where its identity differs, the digest decides: a copy of the same bytes is the same file.

    Raises:
        FileNotFoundError: if it is gone.
        ValueError: if it was changed.
    """
    _require_same(unit, digest_of)
    yield
    _require_same(unit, digest_of)


def _require_same(unit: Unit, digest_of: Callable[[Unit], str]) -> None:
    if unit.identity is None:
        return
    now = identity_of(locations.file_entry(unit.path), unit.ids_path)
    if now != unit.identity and digest_of(unit) != unit.digest:
        raise changed(unit.path if unit.ids_path is None else f"{unit.path} or its ids file")


def changed(what: str) -> ValueError:
    """Return the error for a file that is not what it was when the run was planned."""
    return ValueError(f"{redact_url(what)} was changed during the run; start it again")


def require_columns(wanted: list[str], there: list[str], url: str) -> None:
    """Raise ValueError if a column is not there, naming those that are."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(
            f"{redact_url(url)} has no column {listed(missing)}; it has {listed(there)} "
            "(text_column, image_column, embedding_column, id_column and passed_through name them)"
        )


def not_a_list_of_floats(column: str, url: str, found: object = None) -> str:
    """Return the message for an embedding column of another type."""
    kind = "" if found is None else f" but {found}"
    return f"column {column!r} of {redact_url(url)} is not a list of floats{kind}"
