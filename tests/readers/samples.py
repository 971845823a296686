"""Small finished datasets, written without Ray, that the tests of the readers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.schema import EMBEDDING, ID, REJECT, TEXT
from pipeline.storage import Manifest, Receipt, Unit, commit, write_unit
from pipeline.storage.file_facts import schema_text
from pipeline.storage.id_index import plan_index, write_segment
from pipeline.storage.manifest import current_manifest
from tests.storage.samples import vectors

DIMENSION = 8
CONVERSATIONS = pa.schema(
    [pa.field("conversations", pa.list_(pa.struct({"from": pa.string(), "value": pa.string()})))]
)


def ids_of(shard: int, rows: int) -> list[str]:
    """Return a shard's ids; those of all shards interleave."""
    return [f"{row:05d}-é{shard}" for row in range(rows)]


def embedding_of(ids: Sequence[str], dtype: str = "float16") -> np.ndarray:
    """Return the embeddings (n, d) of ids, as they are stored."""
    parts = np.array([[int(one) for one in name.split("-é")] for name in ids]).reshape(-1, 2)
    angles = np.outer(parts[:, 0] + 1, np.arange(1, DIMENSION + 1)) * 0.7 + parts[:, 1:] * 1.3
    values = np.sin(angles)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float32).astype(dtype)


def write_shard(root: str, shard: int, rows: int, dtype: str = "float16") -> Receipt:
    """Write a shard of so many rows and its receipt."""
    ids = ids_of(shard, rows)
    table = pa.table(
        {
            ID: pa.array(ids, pa.string()),
            TEXT: pa.array([f"caption of {one}" for one in ids], pa.string()),
            EMBEDDING: vectors(embedding_of(ids, "float32")),
            "conversations": pa.array(
                [[{"from": "human", "value": f"What is {one}?"}] for one in ids],
                CONVERSATIONS.field(0).type,
            ),
            REJECT: pa.nulls(rows, pa.string()),
        }
    )
    unit = Unit(
        key=f"unit{shard}",
        path=f"captions-{shard}.jsonl",
        format="jsonl",
        start=0,
        stop=rows,
        rows=rows,
        digest="0",
        has_ids=True,
        passed_through=schema_text(CONVERSATIONS),
    )
    return write_unit(
        root, unit=unit, fingerprint=dtype, table=table, dtype=dtype, metadata={}, seconds={}
    )


def publish(
    root: str,
    receipts: Sequence[Receipt],
    *,
    dtype: str = "float16",
    indexed: bool = True,
    **fields: Any,
) -> Manifest:
    """Commit a version of some shards, with its id index, as the flow does."""
    index = None
    if indexed:
        before = current_manifest(root)
        plan = plan_index(receipts, (before.index if before else None) or ())
        index = [*plan.kept, *(write_segment(root, shards) for shards in plan.missing)]
    options: dict[str, Any] = {
        "kind": "substitutes",
        "dimension": DIMENSION,
        "source": {"path": "captions"},
        "config": {},
        "encoder": {"model": "toy", "fingerprint": "abc"},
        **fields,
    }
    return commit(root, dtype=dtype, receipts=receipts, index=index, **options)


def write_dataset(
    root: str, rows: Sequence[int], dtype: str = "float16", **fields: Any
) -> Manifest:
    """Write a dataset of shards with so many rows each and commit it."""
    receipts = [write_shard(root, shard, count, dtype) for shard, count in enumerate(rows)]
    return publish(root, receipts, dtype=dtype, **fields)


def all_ids(rows: Sequence[int]) -> list[str]:
    """Return the ids of a dataset of such shards, sorted."""
    return sorted(one for shard, count in enumerate(rows) for one in ids_of(shard, count))
