"""Ids that occur in several units: found before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import ray.data

from pipeline.cluster.session import IO_CPUS
from pipeline.report.console import Reporter
from pipeline.schema import ENVELOPE
from pipeline.stages.hash_ids import HashIds
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import DuplicateIds, Hashes
from pipeline.storage.id_hashes import read_id_hashes
from pipeline.storage.planning import Plan


def find_duplicate_ids(
    corpus: Corpus, plan: Plan, reporter: Reporter, root: str
) -> tuple[tuple[Unit, ...], DuplicateIds | None]:
    """Return the units, those that lose rows under new keys, and who keeps which id.

    The first unit in plan order keeps an id. What a unit loses depends on the other units, so it
    goes into the unit's key: a shard's name still says all that its content depends on. The ids of
    a unit are read once and their hashes kept in the dataset `root`.

    Raises:
        ValueError: if `root` cannot be read or written, or a unit cannot be read.
    """
    # Derived ids hold the unit's digest, and a dataset's ids were checked when it was written.
    if len(plan.units) < 2 or not plan.has_ids or plan.units[0].format == "dataset":
        return plan.units, None
    hashes = read_id_hashes(root, corpus, plan.units)
    new = [unit for unit in plan.units if unit.key not in hashes]
    if new:
        with reporter.progress("checking ids", len(plan.units)) as advance:
            advance(len(hashes))
            for key, found in _hashed(corpus, new, root):
                hashes[key] = found
                advance(1)
    duplicates = DuplicateIds.from_units([(unit.key, hashes[unit.key]) for unit in plan.units])
    if not len(duplicates):
        return plan.units, None
    keys = {}
    for unit in plan.units:
        lost = duplicates.rejected(unit.key, hashes[unit.key])
        keys[unit.key] = unit.key
        if lost.any():
            content = unit.key.encode() + hashes[unit.key][lost].tobytes()
            keys[unit.key] = hashlib.sha256(content).hexdigest()[: len(unit.key)]
    renamed = dataclasses.replace(
        duplicates, unit_keys=tuple(keys[key] for key in duplicates.unit_keys)
    )
    units = tuple(dataclasses.replace(unit, key=keys[unit.key]) for unit in plan.units)
    return units, renamed


def _hashed(corpus: Corpus, units: Sequence[Unit], root: str) -> Iterator[tuple[str, Hashes]]:
    """Yield the keys and id hashes of units as they are read, in any order."""
    rows = [{ENVELOPE: unit.to_json()} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        HashIds(corpus, root), batch_size=None, batch_format="pyarrow", num_cpus=IO_CPUS
    )
    for row in dataset.iter_rows():
        yield row["key"], np.frombuffer(row["hashes"], dtype=np.uint64).reshape(-1, 2)
