"""The actors that encode and correct."""

from __future__ import annotations

import logging
import os
import traceback

import pyarrow as pa

from pipeline.stages.embed import Embed
from pipeline.stages.envelope import DeviceLostError
from pipeline.storage.locations import redact_url

logger = logging.getLogger(__name__)


class EmbedActor(Embed):
    """`Embed` in an actor: a process whose device is lost ends, so that Ray starts another."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the unit's next block; ends the process when it can do nothing any more."""
        try:
            return super().__call__(block)
        except DeviceLostError as error:
            # An error raised here would fail the run, and the other units of this actor with it.
            trace = redact_url("".join(traceback.format_exception(error)))
            logger.error("this worker ends; Ray starts another in its place\n%s", trace)
            os._exit(1)
