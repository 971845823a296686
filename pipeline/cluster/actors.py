"""The actors that encode and correct."""

from __future__ import annotations

import logging
import os

import pyarrow as pa

from pipeline.stages.embed import Embed
from pipeline.stages.envelope import DeviceLostError

logger = logging.getLogger(__name__)


class EmbedActor(Embed):
    """`Embed` in an actor: a process whose device is lost ends, so that Ray starts another."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the unit's next block; ends the process when it can do nothing any more."""
        try:
            return super().__call__(block)
        except DeviceLostError:
            # An error raised here would fail the run, and the other units of this actor with it.
            logger.exception("this worker ends; Ray starts another in its place")
            os._exit(1)
