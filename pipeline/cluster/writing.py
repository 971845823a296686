"""The stages that write a dataset: read, embed, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray.data
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from pipeline.cluster.attempts import CountedAttempts
from pipeline.cluster.session import ACTOR_CPUS, IO_CPUS, EmbedWorkers, embed_workers
from pipeline.cluster.units import Execution, Row
from pipeline.cluster.workers import EmbedTask, EmbedWorker
from pipeline.config import RunConfig
from pipeline.schema import ENVELOPE
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage.corpus import Unit
from pipeline.storage.duplicates import Duplicates

if TYPE_CHECKING:
    from pipeline.cluster.dataset_flow import DatasetRequest

_WHOLE_UNITS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}


def writing(config: RunConfig, request: DatasetRequest, duplicates: Duplicates | None) -> Execution:
    """Return the execution that turns units into shards; its rows hold `receipt` (JSON)."""

    def execute(units: Sequence[Unit], attempts: CountedAttempts) -> Iterable[Row]:
        metadata = {"anisoalign.encoder": str(request.encoder.get("fingerprint", ""))}
        if request.aligner is not None:
            metadata["anisoalign.aligner"] = str(request.aligner["fingerprint"])
        read = ReadUnit(request.corpus, request.plan.dimension, duplicates, attempts)
        write = WriteShard(request.root, request.fingerprint, request.dtype, metadata, attempts)
        made_by = {
            f"{name}_fingerprint": model["fingerprint"]
            for name, model in (("encoder", request.encoder), ("aligner", request.aligner))
            if model is not None and name in request.embed
        }
        workers = embed_workers(config, len(units))
        device = config.encoder.device
        given = {**request.embed, **made_by, "device": device, "threads": workers.threads}
        rows = [{ENVELOPE: unit.to_json()} for unit in units]
        # One block a unit and no target block size: one unit, one block, one batch, to the end.
        # Tasks and actors whose process dies are tried again without end, Ray Data's default: the
        # attempts, counted, end it.
        source = ray.data.from_items(rows, override_num_blocks=len(rows))
        through = _through_actors if workers.gpus else _through_tasks
        written = through(source, read, {**given, "attempts": attempts}, write, workers)
        found: Iterable[Row] = written.iter_rows()
        return found

    return execute


def _through_tasks(
    source: Dataset,
    read: ReadUnit,
    given: Mapping[str, Any],
    write: WriteShard,
    workers: EmbedWorkers,
) -> Dataset:
    """On CPUs: stages of tasks with the same resources become one task, and no block moves."""
    for stage in (read, EmbedTask.of(EmbedWorker, **given), write):
        source = source.map_batches(
            stage, **_WHOLE_UNITS, compute=TaskPoolStrategy(size=workers.size), num_cpus=1
        )
    return source


def _through_actors(
    source: Dataset,
    read: ReadUnit,
    given: Mapping[str, Any],
    write: WriteShard,
    workers: EmbedWorkers,
) -> Dataset:
    """Beside GPUs: actors, since a task's process gives its GPU back by ending."""
    # The public map_batches refuses batch_size=None beside a GPU (any number would bundle or split
    # units), so the stage on the GPU goes through the method behind it; tested with a GPU.
    return (
        source.map_batches(read, **_WHOLE_UNITS, num_cpus=IO_CPUS)
        .map_batches_internal(
            EmbedWorker,
            fn_constructor_kwargs=dict(given),
            compute=ActorPoolStrategy(size=workers.size),
            **_WHOLE_UNITS,
            num_cpus=ACTOR_CPUS,
            num_gpus=workers.gpus,
        )
        .map_batches(write, **_WHOLE_UNITS, num_cpus=IO_CPUS)
    )
