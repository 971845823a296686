"""Reading: one unit in, its rows out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.stages.envelope import Attempts, Envelope, FirstStage, Uncounted
from pipeline.storage.corpus import Corpus
from pipeline.storage.duplicates import Duplicates
from pipeline.storage.norms import Norms
from pipeline.storage.reading import read_unit


@dataclass(frozen=True)
class ReadUnit(FirstStage):
    """Stage: a one-row table with a unit (JSON) becomes the block of its rows."""

    corpus: Corpus
    dimension: int | None = None
    duplicates: Duplicates | None = None
    attempts: Attempts = field(default_factory=Uncounted)

    stage = "read"

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        """Return all rows of the unit with their envelope; raises ValueError as `read_unit`."""
        del table
        norms = Norms()
        with envelope.timed("read"):
            rows = read_unit(
                self.corpus,
                envelope.unit,
                dimension=self.dimension,
                duplicates=self.duplicates,
                norms=norms,
            )
        envelope.norms = norms.to_mapping()
        return envelope.seal(rows)
