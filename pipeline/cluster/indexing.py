"""The id index of a dataset of substitutes: what is missing of it is built by tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayError

from pipeline.cluster.errors import user_error
from pipeline.report.console import Reporter
from pipeline.storage.id_index import IndexSegment, plan_index, write_segment
from pipeline.storage.manifest import Manifest
from pipeline.storage.receipts import Receipt
from pipeline.storage.shards import missing_files

_MOST_RETRIES = 10
"""Of a task whose process or machine dies."""
_LOOKS_EVERY_S = 10.0


def needs_index(kind: str) -> bool:
    """Return whether datasets of a kind have an id index: what trainers read by id has."""
    return kind == "substitutes"


def has_index(root: str, manifest: Manifest) -> bool:
    """Return whether a version's id index is there as a whole, by a listing."""
    return manifest.index is not None and not missing_files(root, _files(manifest.index))


def index_dataset(
    root: str,
    receipts: Sequence[Receipt],
    before: Manifest | None,
    reporter: Reporter,
    check: Callable[[], None],
) -> tuple[IndexSegment, ...]:
    """Return the segments that cover these shards, after building those that are missing.

    A segment of the version before is taken over where it fits. Each task reads the ids of up to
    64 shards and four million rows (or one shard of more). `check` is called now and then, and
    what it raises ends it.

    Raises:
        ValueError: when a shard cannot be read or a segment not be written.
    """
    there = (before.index if before else None) or ()
    lost = set(missing_files(root, _files(there)))
    plan = plan_index(receipts, [segment for segment in there if segment.path not in lost])
    built: list[IndexSegment] = []
    if plan.missing:
        started = time.perf_counter()
        built = _built(root, plan.missing, reporter, check)
        reporter.event(
            "index_built",
            segments=len(built),
            kept=len(plan.kept),
            shards=sum(len(shards) for shards in plan.missing),
            seconds=round(time.perf_counter() - started, 3),
        )
    return (*plan.kept, *built)


def _built(
    root: str,
    groups: Sequence[Sequence[Receipt]],
    reporter: Reporter,
    check: Callable[[], None],
) -> list[IndexSegment]:
    task = ray.remote(num_cpus=1, max_retries=_MOST_RETRIES)(_write_segment)
    pending = [task.remote(root, [receipt.to_json() for receipt in shards]) for shards in groups]
    built: list[IndexSegment] = []
    try:
        with reporter.progress("indexing ids", sum(map(len, groups))) as advance:
            while pending:
                done, pending = ray.wait(pending, timeout=_LOOKS_EVERY_S)
                for text in ray.get(done):
                    segment = IndexSegment.from_dict(json.loads(text))
                    built.append(segment)
                    advance(len(segment.shards))
                check()
    except RayError as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise cause from None
    finally:
        for unfinished in pending:
            ray.cancel(unfinished)
    return built


def _write_segment(root: str, receipts: Sequence[str]) -> str:
    """Write the segment of some shards, given by their receipts; returns it as JSON."""
    try:
        segment = write_segment(root, [Receipt.from_json(one) for one in receipts])
    except ValueError as error:
        raise ValueError(str(error)) from None  # a plain one is told from Ray's own failures
    return json.dumps(vars(segment))


def _files(segments: Sequence[IndexSegment]) -> dict[str, int]:
    return {segment.path: segment.bytes for segment in segments}
