"""Ids that occur in several units: found before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import ray.data

from pipeline.cluster.session import IO_CPUS
from pipeline.report.console import Reporter
from pipeline.schema import ENVELOPE
from pipeline.stages.read import HashIds
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import DuplicateIds
from pipeline.storage.planning import Plan


def find_duplicate_ids(
    corpus: Corpus, plan: Plan, reporter: Reporter
) -> tuple[tuple[Unit, ...], DuplicateIds | None]:
    """Return the units, those that lose rows under new keys, and who keeps which id.

    The first unit in plan order keeps an id. What a unit loses depends on the other units, so it
    goes into the unit's key: a shard's name still says all that its content depends on.
    """
    # Derived ids hold the unit's digest, and a dataset's ids were checked when it was written.
    if len(plan.units) < 2 or not plan.has_ids or plan.units[0].format == "dataset":
        return plan.units, None
    rows = [{ENVELOPE: unit.to_json()} for unit in plan.units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        HashIds(corpus), batch_size=None, batch_format="pyarrow", num_cpus=IO_CPUS
    )
    hashes = {}
    with reporter.progress("checking ids", len(rows)) as advance:
        for row in dataset.iter_rows():
            hashes[row["key"]] = np.frombuffer(row["hashes"], dtype=np.uint64).reshape(-1, 2)
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
