"""Ids that occur in several units: found before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import ray.data

from pipeline.cluster.attempts import CountedAttempts
from pipeline.cluster.session import IO_CPUS
from pipeline.cluster.units import Execution, Row, UnitFlow
from pipeline.report.console import Reporter
from pipeline.schema import ENVELOPE
from pipeline.stages.hash_ids import HashIds
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import DuplicateIds
from pipeline.storage.id_hashes import read_id_hashes
from pipeline.storage.planning import Plan


def may_share_ids(plan: Plan) -> bool:
    """Return whether units of a plan can have an id in common."""
    # Derived ids hold the unit's digest, and a dataset's ids were checked when it was written.
    return len(plan.units) > 1 and plan.has_ids and plan.units[0].format != "dataset"


def find_duplicate_ids(
    corpus: Corpus, plan: Plan, reporter: Reporter, root: str, flow: UnitFlow
) -> tuple[tuple[Unit, ...], DuplicateIds | None]:
    """Return the units, those that lose rows under new keys, and who keeps which id.

    The first unit in plan order keeps an id. What a unit loses depends on the other units, so it
    goes into the unit's key: a shard's name still says all that its content depends on. The ids of
    a unit are read once and their hashes kept in the dataset `root`. Units that cannot be read are
    left out; `flow` knows them.

    Raises:
        ValueError: if `root` cannot be read or written.
    """
    if not may_share_ids(plan):
        return plan.units, None
    hashes = read_id_hashes(root, corpus, plan.units)
    new = [unit for unit in plan.units if unit.key not in hashes]
    if new:
        with reporter.progress("checking ids", len(plan.units)) as advance:
            advance(len(hashes))
            for row in flow.run(new, _hashing(corpus, root)):
                hashes[row["unit"]] = np.frombuffer(row["hashes"], dtype=np.uint64).reshape(-1, 2)
                advance(1)
    readable = tuple(unit for unit in plan.units if unit.key not in flow.failed)
    duplicates = DuplicateIds.from_units([(unit.key, hashes[unit.key]) for unit in readable])
    if not len(duplicates):
        return readable, None
    keys = {}
    for unit in readable:
        lost = duplicates.rejected(unit.key, hashes[unit.key])
        keys[unit.key] = unit.key
        if lost.any():
            content = unit.key.encode() + hashes[unit.key][lost].tobytes()
            keys[unit.key] = hashlib.sha256(content).hexdigest()[: len(unit.key)]
    renamed = dataclasses.replace(
        duplicates, unit_keys=tuple(keys[key] for key in duplicates.unit_keys)
    )
    return tuple(_renamed(unit, keys[unit.key]) for unit in readable), renamed


def _renamed(unit: Unit, key: str) -> Unit:
    if key == unit.key:
        return unit
    return dataclasses.replace(unit, key=key, planned_key=unit.key)


def _hashing(corpus: Corpus, root: str) -> Execution:
    """Return the execution that hashes the ids of units."""

    def execute(units: Sequence[Unit], attempts: CountedAttempts) -> Iterable[Row]:
        rows = [{ENVELOPE: unit.to_json()} for unit in units]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            HashIds(corpus, root, attempts),
            batch_size=None,
            batch_format="pyarrow",
            # A store keeps a task waiting; files on disks keep it busy.
            num_cpus=1 if locations.is_local(corpus.path) else IO_CPUS,
        )
        found: Iterable[Row] = dataset.iter_rows()
        return found

    return execute
