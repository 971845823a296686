"""Hashing ids: one unit in, the hashes of its ids out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.stages.envelope import Attempts, Envelope, FirstStage, Uncounted, failure_row
from pipeline.storage.corpus import Corpus
from pipeline.storage.duplicates import row_hashes
from pipeline.storage.id_hashes import looks_at_texts, write_id_hashes
from pipeline.storage.reading import read_unit

_ROW = pa.schema([("unit", pa.string()), ("hashes", pa.binary()), ("failure", pa.string())])


@dataclass(frozen=True)
class HashIds(FirstStage):
    """Stage: a unit becomes one row with the 128-bit hashes of its good rows.

    They are kept beside the dataset in `root` too, so that the next run need not read the unit.
    One row: `unit` (its key), `hashes` (the bytes of a (n, 2 or 4) uint64 array) and `failure`
    (JSON), of which one is null.
    """

    corpus: Corpus
    root: str
    attempts: Attempts = field(default_factory=Uncounted)

    stage = "hash ids"

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        """Return the hashes; raises ValueError as `read_unit`."""
        del table
        unit = envelope.unit
        rows = read_unit(self.corpus, unit)
        hashes = row_hashes(rows, texts=looks_at_texts(self.corpus))
        write_id_hashes(self.root, self.corpus, unit, hashes)
        row = {"unit": unit.key, "hashes": hashes.tobytes(), "failure": None}
        return pa.Table.from_pylist([row], schema=_ROW)

    def failed(self, envelope: Envelope) -> pa.Table:
        """Return the failure of a unit."""
        return failure_row(envelope, _ROW)
