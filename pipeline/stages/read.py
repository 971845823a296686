"""Reading: one unit in, its rows out."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.schema import ENVELOPE
from pipeline.stages.envelope import Envelope
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import DuplicateIds, id_hashes
from pipeline.storage.reading import read_unit


@dataclass(frozen=True)
class ReadUnit:
    """Stage: a one-row table with a unit (JSON) becomes the block of its rows."""

    corpus: Corpus
    dimension: int | None = None
    duplicate_ids: DuplicateIds | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return all rows of the unit with their envelope; raises ValueError as `read_unit`."""
        envelope = Envelope(_only_unit(batch))
        with envelope.timed("read"):
            table = read_unit(
                self.corpus,
                envelope.unit,
                dimension=self.dimension,
                duplicate_ids=self.duplicate_ids,
            )
        return envelope.seal(table)


@dataclass(frozen=True)
class HashIds:
    """Stage: a unit becomes one row with the 128-bit hashes of its good rows' ids."""

    corpus: Corpus

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return columns `key` and `hashes` (the bytes of a (n, 2) uint64 array)."""
        unit = _only_unit(batch)
        hashes = id_hashes(read_unit(self.corpus, unit))
        return pa.table({"key": [unit.key], "hashes": [hashes.tobytes()]})


def _only_unit(batch: pa.Table) -> Unit:
    assert batch.num_rows == 1, "one unit is one block"
    return Unit.from_json(batch.column(ENVELOPE)[0].as_py())
