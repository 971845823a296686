"""Writing: one block in, its shard on storage, its receipt out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.stages.envelope import Attempts, Envelope, Uncounted, UnitStage, failure_row
from pipeline.storage.shards import write_unit

_ROW = pa.schema([("unit", pa.string()), ("receipt", pa.string()), ("failure", pa.string())])


@dataclass(frozen=True)
class WriteShard(UnitStage):
    """Stage: a block becomes shard, quarantine shard and receipt; only the receipt goes on.

    One row: `unit` (its key), `receipt` (JSON) and `failure` (JSON), of which one is null.
    """

    root: str
    fingerprint: str
    dtype: str
    metadata: dict[str, str] = field(default_factory=dict)
    attempts: Attempts = field(default_factory=Uncounted)

    stage = "write"

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        """Return the receipt; raises ValueError when it cannot be written."""
        receipt = write_unit(
            self.root,
            unit=envelope.unit,
            fingerprint=self.fingerprint,
            table=table,
            dtype=self.dtype,
            metadata=self.metadata,
            seconds=envelope.seconds,
            truncated=envelope.truncated,
            norms=envelope.norms,
        )
        row = {"unit": envelope.unit.key, "receipt": receipt.to_json(), "failure": None}
        return pa.Table.from_pylist([row], schema=_ROW)

    def failed(self, envelope: Envelope) -> pa.Table:
        """Return the failure of a unit that failed here or before."""
        return failure_row(envelope, _ROW)
