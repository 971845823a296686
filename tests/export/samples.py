"""Small datasets of substitutes that the export tests share."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.exporting import LAYOUTS, ExportReport, export
from pipeline.export.layout import Layout
from pipeline.names import DEFAULT_NAMES, Names
from pipeline.schema import EMBEDDING, ID, TEXT
from pipeline.storage import (
    Manifest,
    commit,
    embeddings_of,
    locations,
    open_manifest,
    plan,
    read_shard,
    read_unit,
    write_unit,
)
from tests.storage.samples import encoded, text_corpus, unit_norm, vectors

DIMENSION = 8
ROWS = 30
HOSTILE_IDS = [
    "a.b.c",
    ".hidden",
    "a..b",
    "...",
    "folder/.hidden/name",
    "folder/name.json",
    "back\\slash",
    "per%cent",
    "per%25cent",
    "tilde~id",
    "tilde%7Eid",
    "naïve ünïcode 图片",
    "👩‍🚀",
    "__meta__",
    "white space ",
    "CON",
    "?*:|<>\"'",
    "x" * 300,
    "x" * 301,
    "é" * 200,
]
HOSTILE_TEXTS = [
    "{text} {0} {} {{braces}}",
    "quotes \" and ' and \\ backslashes",
    "lines\nof\n\ntext",
    "an <image> token",
    "a {text}<image>{text}",
    "\u2028 separators \u2029 and 🦆",
    "</s> <|endoftext|>",
]


def captions(rows: int = ROWS) -> dict[str, list[Any]]:
    """Columns of a caption corpus."""
    return {
        "id": [f"id-{(row * 7919) % 1000:04d}" for row in range(rows)],
        "text": [f"caption {row}: {HOSTILE_TEXTS[row % 7]}" for row in range(rows)],
    }


def write_substitutes(
    root: str,
    source: Path,
    columns: dict[str, Any] | None = None,
    *,
    rows_per_shard: int = 10,
    dtype: str = "float16",
    null_text: bool = False,
    kind: Any = "substitutes",
    names: Names = DEFAULT_NAMES,
) -> Manifest:
    """A dataset of substitutes; columns beside id and text are passed through."""
    columns = captions() if columns is None else columns
    table = pa.table(columns)
    source.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {}
    if null_text:
        table = table.append_column("vector", vectors(unit_norm(len(table), DIMENSION)))
        fields["embedding_column"] = "vector"
    path = source / "captions.parquet"
    pq.write_table(table, path)
    passed = tuple(name for name in columns if name not in (ID, TEXT))
    corpus = text_corpus(path, passed_through=passed, **fields)
    receipts = []
    for seed, unit in enumerate(plan(corpus, rows_per_shard).units):
        rows = read_unit(corpus, unit)
        receipts.append(
            write_unit(
                root,
                unit=unit,
                fingerprint="fingerprint",
                table=rows if null_text else encoded(rows, DIMENSION, seed),
                dtype=dtype,
                metadata={"encoder": "toy"},
                seconds={"embed": 0.5},
            )
        )
    return commit(
        root,
        kind=kind,
        dimension=DIMENSION,
        dtype=dtype,
        receipts=receipts,
        source={"path": str(path)},
        config={},
        encoder={"model": "toy", "pretrained": "laion", "fingerprint": "abc"},
        aligner={"method": "anisoalign", "fingerprint": "0123"},
        software={"anisoalign": "1", "torch": "2"},
        names=names,
    )


def run(root: str, target: Path | str, layout: str | Layout, **options: Any) -> ExportReport:
    """Export with the settings of a layout, or the default ones of the format named."""
    made = LAYOUTS[layout]() if isinstance(layout, str) else layout
    return export(root, str(target), made, **options)


def source_rows(root: str) -> list[dict[str, Any]]:
    """All rows in the order of an export, embeddings as stored."""
    found = []
    for receipt in sorted(open_manifest(root).receipts, key=lambda one: one.path):
        table = read_shard(root, receipt)
        dtype = {pa.float16(): np.float16, pa.float32(): np.float32}[
            table.schema.field(EMBEDDING).type.value_type
        ]
        values = embeddings_of(table).astype(dtype)
        for row, value in zip(table.drop([EMBEDDING]).to_pylist(), values, strict=True):
            found.append({**row, EMBEDDING: value})
    return found


def contents(target: Path | str) -> dict[str, str]:
    """The sha256 of every file of a folder or URL, by path."""
    return {
        entry.name: hashlib.sha256(locations.read_bytes(entry.url)).hexdigest()
        for entry in locations.list_files(str(target))
    }


def check_sums(target: Path) -> None:
    """Let sha256sum check an export, and look that no file is left out."""
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "checksums.sha256"],
        cwd=target,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    listed = {line.split("  ", 1)[1] for line in (target / "checksums.sha256").open(newline="\n")}
    there = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {path.rstrip("\n") for path in listed} == there - {"checksums.sha256"}


def same_bits(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether embeddings are equal to the bit, type included."""
    ours, theirs = np.stack([np.asarray(one) for one in found]), np.stack(wanted)
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def rich_columns() -> dict[str, Any]:
    """Hostile ids and captions, and columns of many types to pass through."""
    rows = len(HOSTILE_IDS)
    return {
        "id": HOSTILE_IDS,
        "text": [HOSTILE_TEXTS[row % len(HOSTILE_TEXTS)] for row in range(rows)],
        "source": [f"web {row}" if row % 3 else None for row in range(rows)],
        "count": pa.array(range(rows), pa.int64()),
        "score": [float("nan") if row == 2 else row / 4 for row in range(rows)],
        "kept": [row % 2 == 0 for row in range(rows)],
        "tags": [["a", None, "ü"][: row % 4] for row in range(rows)],
        "seen": pa.array([row * 10**9 for row in range(rows)], pa.timestamp("ns")),
        "place": [{"x": row, "y": None} for row in range(rows)],
    }


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """The passed-through columns of a row of `rich_columns` as JSON has them."""
    return {
        "source": row["source"],
        "count": row["count"],
        "score": None if np.isnan(row["score"]) else row["score"],
        "kept": row["kept"],
        "tags": row["tags"],
        "seen": row["seen"].isoformat(),
        "place": row["place"],
    }
