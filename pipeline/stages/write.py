"""Writing: one block in, its shard on storage, its receipt out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.stages.envelope import Envelope
from pipeline.storage.shards import write_unit


@dataclass(frozen=True)
class WriteShard:
    """Stage: a block becomes shard, quarantine shard and receipt; only the receipt goes on."""

    root: str
    fingerprint: str
    dtype: str
    metadata: dict[str, str] = field(default_factory=dict)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return one row, column `receipt` (JSON); raises ValueError when it cannot be written."""
        table, envelope = Envelope.open(block)
        receipt = write_unit(
            self.root,
            unit=envelope.unit,
            fingerprint=self.fingerprint,
            table=table,
            dtype=self.dtype,
            metadata=self.metadata,
            seconds=envelope.seconds,
            truncated=envelope.truncated,
        )
        return pa.table({"receipt": [receipt.to_json()]})
