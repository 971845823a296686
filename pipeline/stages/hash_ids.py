"""Hashing ids: one unit in, the hashes of its ids out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pipeline.schema import ENVELOPE
from pipeline.stages.envelope import Attempts, Envelope, Uncounted, UnitStage
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import id_hashes
from pipeline.storage.id_hashes import write_id_hashes
from pipeline.storage.reading import read_unit

_ROW = pa.schema([("unit", pa.string()), ("hashes", pa.binary()), ("failure", pa.string())])


@dataclass(frozen=True)
class HashIds(UnitStage):
    """Stage: a unit becomes one row with the 128-bit hashes of its good rows' ids.

    They are kept beside the dataset in `root` too, so that the next run need not read the unit.
    One row: `unit` (its key), `hashes` (the bytes of a (n, 2) uint64 array) and `failure` (JSON),
    of which one is null.
    """

    corpus: Corpus
    root: str
    attempts: Attempts = field(default_factory=Uncounted)

    stage = "hash ids"

    def open(self, block: pa.Table) -> tuple[pa.Table, Envelope]:
        """Return an envelope for the unit; there are no rows yet."""
        assert block.num_rows == 1, "one unit is one block"
        return block, Envelope(Unit.from_json(block.column(ENVELOPE)[0].as_py()))

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        """Return the hashes; raises ValueError as `read_unit`."""
        del table
        unit = envelope.unit
        hashes = id_hashes(read_unit(self.corpus, unit))
        write_id_hashes(self.root, self.corpus, unit, hashes)
        row = {"unit": unit.key, "hashes": hashes.tobytes(), "failure": None}
        return pa.Table.from_pylist([row], schema=_ROW)

    def failed(self, envelope: Envelope) -> pa.Table:
        """Return the failure of a unit."""
        assert envelope.failure is not None, "the unit did not fail"
        failure = json.dumps(asdict(envelope.failure))
        row = {"unit": envelope.unit.key, "hashes": None, "failure": failure}
        return pa.Table.from_pylist([row], schema=_ROW)
