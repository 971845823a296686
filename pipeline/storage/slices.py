"""A slice of a file, what a file tells about itself, and the digests that know it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa

from pipeline.storage import locations
from pipeline.storage.locations import listed, redact_url

CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows [start, stop) of a file, their bytes where the format has such, their digest.

    In a shard of ours `source_path` and its rows say what it was made from.
    """

    start: int
    stop: int
    digest: str
    byte_start: int = 0
    byte_stop: int = 0
    source_path: str = ""
    source_start: int = 0
    source_stop: int = 0


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


def require_columns(wanted: list[str], there: list[str], url: str) -> None:
    """Raise ValueError if a column is not there, naming those that are."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(
            f"{redact_url(url)} has no column {listed(missing)}; it has {listed(there)}"
        )


def not_a_list_of_floats(column: str, url: str, found: object = None) -> str:
    """Return the message for an embedding column of another type."""
    kind = "" if found is None else f" but {found}"
    return f"column {column!r} of {redact_url(url)} is not a list of floats{kind}"
