"""A stand-in for the script that people run today: ReAlign in four passes over pickled lists.

It is what `bench synthesize` is measured against, run as `python -m` in a process of its own over
files that the benchmark itself has just written; nothing else in the project unpickles anything.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK_ROWS = 10_000

Rows = npt.NDArray[np.float64]


def chunks(folder: Path) -> Iterator[tuple[list[str], Rows]]:
    """Yield ids and embeddings (n, d) of a folder of .pkl, each a list of {"id", "embed"}."""
    for path in sorted(folder.glob("*.pkl")):
        with path.open("rb") as file:
            rows: list[dict[str, Any]] = pickle.load(file)
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            yield (
                [row["id"] for row in chunk],
                np.stack([row["embed"] for row in chunk], dtype="f8"),
            )


def mean_of(folder: Path) -> Rows:
    """Return the mean (d,): one pass."""
    total, count = np.zeros(1), 0
    for _, rows in chunks(folder):
        total, count = total + rows.sum(axis=0), count + len(rows)
    return total / count


def trace_of(folder: Path, mean: Rows) -> float:
    """Return the trace of the covariance: one pass."""
    total, count = 0.0, 0
    for _, rows in chunks(folder):
        total, count = total + float(((rows - mean) ** 2).sum()), count + len(rows)
    return total / count


def unit(rows: Rows) -> Rows:
    """Return rows (n, d) of norm 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def realign(texts: Path, images: Path, target: Path) -> None:
    """Write substitutes of a folder of text embeddings to one .pkl of the same shape."""
    image_mean = mean_of(images)
    image_trace = trace_of(images, image_mean)
    text_mean = mean_of(texts)
    scale = np.sqrt(image_trace / trace_of(texts, text_mean))
    total, count = np.zeros(1), 0
    for _, rows in chunks(texts):
        moved = unit(image_mean + scale * (rows - text_mean))
        total, count = total + moved.sum(axis=0), count + len(rows)
    shift = image_mean - total / count
    found = []
    for ids, rows in chunks(texts):
        moved = unit(unit(image_mean + scale * (rows - text_mean)) + shift).astype(np.float32)
        found += [{"id": one, "embed": embed} for one, embed in zip(ids, moved, strict=True)]
    with target.open("wb") as file:
        pickle.dump(found, file, protocol=pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    realign(*(Path(argument) for argument in sys.argv[1:4]))
