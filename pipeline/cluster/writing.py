"""Units through the stages: read, embed, write; those that fail are named, retried, passed over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray.data

from pipeline.cluster.attempts import CountedAttempts, EmbedActor, counted_attempts
from pipeline.cluster.session import IO_CPUS, actor_pool
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.schema import ENVELOPE
from pipeline.stages.envelope import Failure
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage.corpus import Unit
from pipeline.storage.duplicates import DuplicateIds
from pipeline.storage.locations import UnwritableError
from pipeline.storage.receipts import Receipt, source_of

if TYPE_CHECKING:
    from pipeline.cluster.dataset_flow import DatasetRequest

_NAMED_FAILURES = 5


class UnitWriting:
    """Units on their way through the stages, those that fail again and again."""

    def __init__(
        self,
        config: RunConfig,
        request: DatasetRequest,
        duplicates: DuplicateIds | None,
        reporter: Reporter,
    ) -> None:
        self._config, self._request = config, request
        self._duplicates, self._reporter = duplicates, reporter
        self._units: dict[str, Unit] = {}
        self._tries: Counter[str] = Counter()
        self._failures: dict[str, Failure] = {}

    @property
    def retried(self) -> int:
        """Number of units that failed at first and were tried again."""
        return len(self._tries)

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Yield the receipts of units as they are written; failed units are tried again.

        Raises:
            UnwritableError: when the output takes no file; what was written is kept.
        """
        limit = self._config.units.max_attempts
        self._units = {unit.key: unit for unit in units}
        pending = list(units)
        with counted_attempts(limit) as attempts:
            while pending:
                failed: list[Unit] = []
                for key, outcome in self._execute(pending, attempts):
                    if isinstance(outcome, Receipt):
                        self._failures.pop(key, None)
                        self._written(outcome)
                        yield outcome
                    elif outcome.unwritable:
                        # Told by a row, not by an exception: Ray Data strips those of their cause.
                        raise UnwritableError(outcome.reason)
                    else:
                        self._tries[key] += outcome.attempts
                        self._failures[key] = outcome
                        failed.append(self._units[key])
                pending = [unit for unit in failed if self._tries[unit.key] < limit]
                for unit in failed:
                    self._say_failed(unit, again=self._tries[unit.key] < limit)

    def check(self) -> None:
        """Raise ValueError naming the units that failed for good."""
        if not self._failures:
            return
        named = [
            f"{_place(self._units[key])} ({failure.stage}: {failure.reason})"
            for key, failure in list(self._failures.items())[:_NAMED_FAILURES]
        ]
        more = len(self._failures) - len(named)
        raise ValueError(
            f"{len(self._failures)} of {len(self._request.plan.units)} units of "
            f"{self._request.corpus.shown} failed, with "
            f"units.max_attempts={self._config.units.max_attempts}: {'; '.join(named)}"
            + (f"; and {more} more" if more else "")
            + "; the others are written and kept: mend what is named and run it again"
        )

    def _execute(
        self, units: Sequence[Unit], attempts: CountedAttempts
    ) -> Iterator[tuple[str, Receipt | Failure]]:
        """Yield unit keys with receipts or failures as they come, in any order."""
        request = self._request
        pool = actor_pool(self._config, len(units))
        metadata = {"anisoalign.encoder": str(request.encoder.get("fingerprint", ""))}
        if request.aligner is not None:
            metadata["anisoalign.aligner"] = str(request.aligner["fingerprint"])
        read = ReadUnit(request.corpus, request.plan.dimension, self._duplicates, attempts)
        write = WriteShard(request.root, request.fingerprint, request.dtype, metadata, attempts)
        rows = [{ENVELOPE: unit.to_json()} for unit in units]
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
        for row in dataset.iter_rows():
            if row["failure"] is None:
                yield row["unit"], Receipt.from_json(row["receipt"])
            else:
                yield row["unit"], Failure(**json.loads(row["failure"]))

    def _written(self, receipt: Receipt) -> None:
        self._reporter.event(
            "unit_written",
            name=self._request.name,
            unit=receipt.unit,
            rows=receipt.rows,
            rejected=receipt.quarantined,
            seconds=receipt.seconds,
        )

    def _say_failed(self, unit: Unit, *, again: bool) -> None:
        failure = self._failures[unit.key]
        self._reporter.event(
            "unit_retried" if again else "unit_failed",
            level="warning" if again else "error",
            name=self._request.name,
            unit=unit.key,
            place=_place(unit),
            stage=failure.stage,
            reason=failure.reason,
            attempts=self._tries[unit.key],
        )
        if again:
            self._reporter.say(f"trying {_place(unit)} again ({failure.stage}: {failure.reason})")


def _place(unit: Unit) -> str:
    source = source_of(unit)
    return f"{source['path']} rows {source['start']} to {source['stop']}"
