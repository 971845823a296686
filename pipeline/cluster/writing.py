"""The stages that write a dataset: read, embed, write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import ray.data

from pipeline.cluster.actors import EmbedActor
from pipeline.cluster.attempts import CountedAttempts
from pipeline.cluster.session import IO_CPUS, actor_pool
from pipeline.cluster.units import Execution, Row
from pipeline.config import RunConfig
from pipeline.schema import ENVELOPE
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage.corpus import Unit
from pipeline.storage.duplicates import DuplicateIds

if TYPE_CHECKING:
    from pipeline.cluster.dataset_flow import DatasetRequest


def writing(
    config: RunConfig, request: DatasetRequest, duplicates: DuplicateIds | None
) -> Execution:
    """Return the execution that turns units into shards; its rows hold `receipt` (JSON)."""

    def execute(units: Sequence[Unit], attempts: CountedAttempts) -> Iterable[Row]:
        pool = actor_pool(config, len(units))
        metadata = {"anisoalign.encoder": str(request.encoder.get("fingerprint", ""))}
        if request.aligner is not None:
            metadata["anisoalign.aligner"] = str(request.aligner["fingerprint"])
        read = ReadUnit(request.corpus, request.plan.dimension, duplicates, attempts)
        write = WriteShard(request.root, request.fingerprint, request.dtype, metadata, attempts)
        rows = [{ENVELOPE: unit.to_json()} for unit in units]
        made_by = {
            f"{name}_fingerprint": model["fingerprint"]
            for name, model in (("encoder", request.encoder), ("aligner", request.aligner))
            if model is not None and name in request.embed
        }
        task: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        # batch_size=None with no target block size: one unit, one block, one batch, to the end.
        # The public map_batches refuses None beside a GPU (any number would bundle or split
        # units), so the stage on the GPU goes through the method behind it; tested with a GPU.
        # Tasks and actors whose process dies are tried again without end, Ray Data's default: the
        # attempts, counted, end it.
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(read, **task, num_cpus=IO_CPUS)
            .map_batches_internal(
                EmbedActor,
                fn_constructor_kwargs={
                    **request.embed,
                    **made_by,
                    "threads": pool.threads,
                    "attempts": attempts,
                },
                compute=pool.strategy,
                **task,
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
            )
            .map_batches(write, **task, num_cpus=IO_CPUS)
        )
        found: Iterable[Row] = dataset.iter_rows()
        return found

    return execute
