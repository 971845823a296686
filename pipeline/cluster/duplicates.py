"""Ids and captions that occur in several units: found before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import ray.data

from pipeline.cluster.attempts import CountedAttempts
from pipeline.cluster.session import IO_CPUS
from pipeline.cluster.units import Execution, Row, UnitFlow
from pipeline.report.console import Reporter
from pipeline.schema import ENVELOPE
from pipeline.stages.hash_ids import HashIds
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import Duplicates
from pipeline.storage.id_hashes import hashes_from, looks_at_texts, read_id_hashes
from pipeline.storage.planning import Plan


def may_share_rows(corpus: Corpus, plan: Plan) -> bool:
    """Return whether units of a plan can have an id, or a caption that may occur once, in common.

    Derived ids hold the unit's digest, so that only parts of a mixed corpus can share them, and a
    dataset's rows were checked when it was written.
    """
    if len(plan.units) < 2:
        return False
    named = plan.has_ids or looks_at_texts(corpus)
    return bool(corpus.parts) or (named and plan.units[0].format != "dataset")


def find_duplicates(
    corpus: Corpus, plan: Plan, reporter: Reporter, root: str, flow: UnitFlow
) -> tuple[tuple[Unit, ...], Duplicates | None]:
    """Return the units, those that lose rows under new keys, and who keeps what several have.

    The first unit in plan order keeps an id, or a caption if captions may occur once only. What a
    unit loses depends on the other units, so it goes into the unit's key: a shard's name still says
    all that its content depends on. The rows of a unit are read once and their hashes kept in the
    dataset `root`. Units that cannot be read are left out; `flow` knows them.

    Raises:
        ValueError: if `root` cannot be read or written.
    """
    if not may_share_rows(corpus, plan):
        return plan.units, None
    hashes = read_id_hashes(root, corpus, plan.units)
    new = [unit for unit in plan.units if unit.key not in hashes]
    if new:
        with reporter.progress("checking ids", len(plan.units)) as advance:
            advance(len(hashes))
            for row in flow.run(new, _hashing(corpus, root)):
                hashes[row["unit"]] = hashes_from(corpus, row["hashes"])
                advance(1)
    readable = tuple(unit for unit in plan.units if unit.key not in flow.failed)
    duplicates = Duplicates.from_units([(unit.key, hashes[unit.key]) for unit in readable])
    if not len(duplicates):
        return readable, None
    keys = {}
    for unit in readable:
        by_id, by_text = duplicates.rejected(unit.key, hashes[unit.key])
        keys[unit.key] = unit.key
        if by_id.any() or by_text.any():
            lost = hashes[unit.key][by_id, :2], hashes[unit.key][by_text]
            content = unit.key.encode() + b"".join(one.tobytes() for one in lost)
            keys[unit.key] = hashlib.sha256(content).hexdigest()[: len(unit.key)]
    return tuple(_renamed(unit, keys[unit.key]) for unit in readable), duplicates.renamed(keys)


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
            num_cpus=1 if corpus.is_local else IO_CPUS,
        )
        found: Iterable[Row] = dataset.iter_rows()
        return found

    return execute
