"""Small corpora and datasets that the storage tests share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import EMBEDDING, RejectReason, embedding_type
from pipeline.storage import Corpus, Manifest, Receipt, commit, plan, read_unit, write_unit


def unit_norm(rows: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def vectors(values: np.ndarray, dtype: str = "float32") -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values, dtype=dtype).reshape(-1)),
        type=embedding_type(values.shape[1], dtype),
    )


def encoded(table: pa.Table, dimension: int = 8, seed: int = 0) -> pa.Table:
    """What an encoder makes of a unit's table."""
    return table.append_column(EMBEDDING, vectors(unit_norm(len(table), dimension, seed)))


def read_all(corpus: Corpus, rows_per_shard: int = 1000, **options: object) -> pa.Table:
    """All rows of a corpus, unit by unit."""
    units = plan(corpus, rows_per_shard).units
    return pa.concat_tables([read_unit(corpus, unit, **options) for unit in units])


def reasons(table: pa.Table) -> list[str | None]:
    return table.column("reject").to_pylist()


def write_parquet(path: Path | str, columns: dict[str, object], **options: object) -> str:
    pq.write_table(pa.table(columns), str(path), **options)
    return str(path)


def write_jsonl(path: Path, records: list[object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def text_corpus(path: object, **fields: object) -> Corpus:
    return Corpus(path=str(path), modality="text", **fields)


def write_dataset(
    root: str, source: Path, rows: int = 30, rows_per_shard: int = 10, dtype: str = "float16"
) -> tuple[Manifest, list[Receipt]]:
    """A dataset of captions with ids, one caption of each shard blank."""
    records = [
        {
            "id": f"id-{(row * 7919) % 1000:04d}",
            "text": " " if row % rows_per_shard == 3 else f"caption {row}",
            "conversations": [{"from": "human", "value": f"question {row}"}],
        }
        for row in range(rows)
    ]
    source.mkdir(parents=True, exist_ok=True)
    corpus = text_corpus(
        write_jsonl(source / "captions.jsonl", records), passed_through=("conversations",)
    )
    receipts = [
        write_unit(
            root,
            unit=unit,
            fingerprint="fingerprint",
            table=encoded(read_unit(corpus, unit), seed=seed),
            dtype=dtype,
            metadata={"encoder": "toy"},
            seconds={"encode": 0.5},
        )
        for seed, unit in enumerate(plan(corpus, rows_per_shard).units)
    ]
    manifest = commit(
        root,
        kind="text-embeddings",
        dimension=8,
        dtype=dtype,
        receipts=receipts,
        source={"path": "captions.jsonl"},
        config={"text": {"path": corpus.path}},
        encoder={"model": "toy", "fingerprint": "abc"},
        software={"python": "3"},
    )
    return manifest, receipts


ALL_REASONS = {reason.value for reason in RejectReason}
