"""Hashing ids: one unit in, the hashes of its ids out."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.schema import ENVELOPE
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import id_hashes
from pipeline.storage.id_hashes import write_id_hashes
from pipeline.storage.reading import read_unit


@dataclass(frozen=True)
class HashIds:
    """Stage: a unit becomes one row with the 128-bit hashes of its good rows' ids.

    They are kept beside the dataset in `root` too, so that the next run need not read the unit.
    """

    corpus: Corpus
    root: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return columns `key` and `hashes` (the bytes of a (n, 2) uint64 array)."""
        assert batch.num_rows == 1, "one unit is one block"
        unit = Unit.from_json(batch.column(ENVELOPE)[0].as_py())
        hashes = id_hashes(read_unit(self.corpus, unit))
        write_id_hashes(self.root, self.corpus, unit, hashes)
        return pa.table({"key": [unit.key], "hashes": [hashes.tobytes()]})
