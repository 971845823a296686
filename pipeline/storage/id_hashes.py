"""The hashes of each unit's rows, kept beside a dataset: only new units are read for them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.schema import RejectReason
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import Hashes
from pipeline.storage.slices import combined

IDS = "ids"
REJECTING_VERSION = 1
"""To be raised whenever rows are rejected by another rule: only good rows' ids are hashed."""
_CHECKSUM_BYTES = 32
_READERS = 16


def ids_name(corpus: Corpus, unit: Unit) -> str:
    """Return the name of a unit's file of hashes: its key, and what decides which rows are good."""
    corpus = corpus.of(unit)
    columns = corpus.reading
    for place in ("path", "ids_path", "format"):
        del columns[place]  # the same content is the same wherever it lies
    reasons = sorted(RejectReason)
    if not corpus.unique_texts:
        reasons.remove(RejectReason.DUPLICATE_TEXT)
    rules = [REJECTING_VERSION, reasons, unit.dimension, columns]
    return f"{unit.key}-{combined('id hashes', rules)[:16]}.hashes"


def write_id_hashes(root: str, corpus: Corpus, unit: Unit, hashes: Hashes) -> None:
    """Keep the hashes (n, 2 or 4) of a unit's good rows in the dataset `root`.

    Raises:
        ValueError: if `root` cannot be written.
    """
    name = ids_name(corpus, unit)
    data = np.ascontiguousarray(hashes, dtype="<u8").tobytes()
    locations.write_bytes(
        locations.join_inside(root, f"{IDS}/{name}"), _checksum(name, data) + data
    )


def read_id_hashes(root: str, corpus: Corpus, units: Sequence[Unit]) -> dict[str, Hashes]:
    """Return the kept hashes (n, 2 or 4) by unit key, without units that have none or damaged ones.

    Raises:
        ValueError: if `root` cannot be listed.
    """
    there = {entry.name for entry in locations.list_files(locations.join(root, IDS))}
    wanted = [unit for unit in units if ids_name(corpus, unit) in there]

    def read(unit: Unit) -> Hashes | None:
        name = ids_name(corpus, unit)
        try:
            stored = locations.read_bytes(locations.join_inside(root, f"{IDS}/{name}"))
        except (FileNotFoundError, ValueError):
            return None
        checksum, data = stored[:_CHECKSUM_BYTES], stored[_CHECKSUM_BYTES:]
        if checksum != _checksum(name, data):
            return None
        return hashes_from(corpus, data)

    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(wanted, pool.map(read, wanted), strict=True)
        return {unit.key: hashes for unit, hashes in found if hashes is not None}


def hashes_from(corpus: Corpus, data: bytes) -> Hashes:
    """Return the hashes of a unit's rows from their bytes: (n, 4) with those of captions."""
    columns = 4 if looks_at_texts(corpus) else 2
    return np.frombuffer(data, dtype="<u8").reshape(-1, columns).astype(np.uint64, copy=False)


def looks_at_texts(corpus: Corpus) -> bool:
    """Return whether captions that occur again are rejected."""
    return any(one.unique_texts for one in corpus.corpora)


def _checksum(name: str, data: bytes) -> bytes:
    """Return the digest of a file's content under its name: one copied to another name is none."""
    return hashlib.sha256(name.encode() + b"/" + data).digest()
