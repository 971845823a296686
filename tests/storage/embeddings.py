"""The same embeddings in files of every kind that holds embeddings."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

KINDS = (
    "npy",
    "npz",
    "npz deflated",
    "safetensors",
    "pickle",
    "pickle by id",
    "clip-retrieval",
    "parquet",
)
FILES = 2


def write_kind(
    folder: Path, kind: str, values: np.ndarray, ids: Sequence[str], *, side: str = "image"
) -> dict[str, Any]:
    """Write embeddings (n, d) to files of a kind; returns how they are read but for the path."""
    folder.mkdir(parents=True, exist_ok=True)
    each = -(-len(values) // FILES)
    for number in range(FILES):
        part = slice(number * each, (number + 1) * each)
        write_file(folder, kind, number, values[part], list(ids[part]), side)
    return {"embedding_column": "e"} if kind == "parquet" else {}


def write_file(
    folder: Path, kind: str, number: int, values: np.ndarray, ids: list[str], side: str = "image"
) -> Path:
    """Write one file of a kind, with its ids."""
    path = folder / f"part{number}"
    captions = [f"caption of {one}" for one in ids]
    if kind in ("npy", "safetensors"):
        path.with_suffix(".ids.txt").write_text("".join(f"{one}\n" for one in ids))
    if kind == "npy":
        np.save(path.with_suffix(".npy"), values)
    elif kind == "npz":
        np.savez(path.with_suffix(".npz"), embeddings=values, ids=np.array(ids))
    elif kind == "npz deflated":
        np.savez_compressed(path.with_suffix(".npz"), embeddings=values, ids=np.array(ids))
    elif kind == "safetensors":
        safetensors.numpy.save_file(
            {"embeddings": np.ascontiguousarray(values), "scale": np.ones(3, np.float32)},
            path.with_suffix(".safetensors"),
        )
    elif kind == "pickle":
        rows = [
            {"id": one, "caption": caption, "embed": value}
            for one, caption, value in zip(ids, captions, values, strict=True)
        ]
        path.with_suffix(".pkl").write_bytes(pickle.dumps(rows))
    elif kind == "pickle by id":
        by_id = dict(zip(ids, values, strict=True))
        path.with_suffix(".pkl").write_bytes(pickle.dumps(by_id))
    elif kind == "parquet":
        table = {"id": ids, "e": pa.array(list(values))}
        pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    else:
        name = {"image": "img", "text": "text"}[side]
        (folder / f"{name}_emb").mkdir(exist_ok=True)
        (folder / "metadata").mkdir(exist_ok=True)
        np.save(folder / f"{name}_emb" / f"{name}_emb_{number:02d}.npy", values)
        table = {"image_path": [f"{one}.jpg" for one in ids], "caption": captions, "id": ids}
        pq.write_table(pa.table(table), folder / "metadata" / f"metadata_{number:02d}.parquet")
    return path
