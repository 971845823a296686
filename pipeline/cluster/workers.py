"""The processes that encode and correct: actors beside a GPU, tasks on CPUs."""

from __future__ import annotations

import functools
import logging
import os
import traceback
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipeline.stages.embed import Embed
from pipeline.stages.envelope import Attempts, DeviceLostError
from pipeline.storage.locations import redact_url

logger = logging.getLogger(__name__)

_KEPT = 2
"""Embeds that a process keeps: those of the text and of the image side."""


class EmbedWorker(Embed):
    """`Embed` in a worker: a process whose device is lost ends, so that Ray starts another."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the unit's next block; ends the process when it can do nothing any more."""
        try:
            return super().__call__(block)
        except DeviceLostError as error:
            # An error raised here would fail the run, and the other units of this worker with it.
            trace = redact_url("".join(traceback.format_exception(error)))
            logger.error("this worker ends; Ray starts another in its place\n%s", trace)
            os._exit(1)


@dataclass(frozen=True)
class EmbedTask:
    """A worker as a function, for tasks: what it loads stays in its process for later flows.

    Starting a process and loading an encoder takes seconds, which actors, new in each flow, would
    spend every time. `given` are the worker's arguments but for the attempts, as sorted items.
    """

    worker: type[EmbedWorker]
    given: tuple[tuple[str, Any], ...]
    attempts: Attempts

    @classmethod
    def of(cls, worker: type[EmbedWorker], *, attempts: Attempts, **given: Any) -> EmbedTask:
        """Return the task of a worker with these arguments."""
        return cls(worker, tuple(sorted(given.items(), key=itemgetter(0))), attempts)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the unit's next block."""
        worker = _loaded(self.worker, self.given)
        worker.attempts = self.attempts
        return worker(block)


@functools.lru_cache(maxsize=_KEPT)
def _loaded(worker: type[EmbedWorker], given: tuple[tuple[str, Any], ...]) -> EmbedWorker:
    return worker(**dict(given))
