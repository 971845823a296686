"""What travels with a block: its unit, and what the stages so far have to say of it.

A block keeps all rows of its unit, rejected ones too, so that it is never empty and the envelope,
a dictionary-encoded constant column, is never lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.schema import ENVELOPE
from pipeline.storage.corpus import Unit


@dataclass
class Envelope:
    """A block's unit, seconds spent by stage, and the number of captions cut by the encoder."""

    unit: Unit
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to the seconds of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def seal(self, table: pa.Table) -> pa.Table:
        """Return the table with this envelope as its last column."""
        content = json.dumps(
            {
                "unit": self.unit.to_json(),
                "seconds": self.seconds,
                "truncated": self.truncated,
            }
        )
        indices = pa.array([0] * table.num_rows, type=pa.int8())
        column = pa.DictionaryArray.from_arrays(indices, pa.array([content]))
        return table.append_column(ENVELOPE, column)

    @classmethod
    def open(cls, block: pa.Table) -> tuple[pa.Table, Envelope]:
        """Return the table without its envelope, and the envelope."""
        assert block.num_rows > 0, "a block holds every row of its unit, so it has at least one"
        content = json.loads(block.column(ENVELOPE)[0].as_py())
        envelope = cls(Unit.from_json(content["unit"]), content["seconds"], content["truncated"])
        return block.drop_columns([ENVELOPE]), envelope
