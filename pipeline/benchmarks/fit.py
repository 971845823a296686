"""How long a distributed fit takes, Ray's start included, against one on tensors in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.align.registry import create_aligner
from pipeline.align.settings import AlignSettings, MethodName
from pipeline.benchmarks.commands import run_command
from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.synthesize import write_config, write_embeddings
from pipeline.schema import EMBEDDING


@dataclass(frozen=True)
class FitReport:
    """Seconds of each repetition: of the command, and of `Aligner.fit` after reading the files."""

    method: str
    texts: int
    images: int
    dimension: int
    ours: tuple[float, ...]
    baseline: tuple[float, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark."""
        value, baseline = statistics.median(self.ours), statistics.median(self.baseline)
        return {
            "name": "fit",
            "unit": "s",
            "value": value,
            "baseline": baseline,
            "ratio": value / baseline,
            "spread": [min(self.ours), max(self.ours)],
            "machine": machine_facts(),
            "method": self.method,
            "texts": self.texts,
            "images": self.images,
            "dimension": self.dimension,
        }


def run_fit(
    folder: Path,
    *,
    method: MethodName,
    rows: int,
    images: int,
    dimension: int,
    repeats: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FitReport:
    """Write random embeddings as Parquet and fit a method on them by both ways, in turns.

    Raises:
        CommandError: when the command fails.
    """
    write_embeddings(folder / "texts", rows, dimension, seed)
    write_embeddings(folder / "images", images, dimension, seed + 1)
    ours, baseline = [], []
    for repetition in range(repeats):
        config = write_config(folder, folder / f"run-{repetition}", method)
        ours.append(run_command("fit", config).seconds)
        start = time.perf_counter()
        aligner = create_aligner(method, AlignSettings(), seed)
        aligner.fit(_read(folder / "images"), _read(folder / "texts"))
        baseline.append(time.perf_counter() - start)
        if progress is not None:
            progress(repetition + 1, repeats)
    return FitReport(method, rows, images, dimension, tuple(ours), tuple(baseline))


def _read(folder: Path) -> Tensor:
    """Return all embeddings (n, d) of a folder of Parquet files."""
    parts = []
    for path in sorted(folder.glob("*.parquet")):
        column = pq.read_table(path, columns=[EMBEDDING]).column(EMBEDDING).combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        parts.append(values.reshape(len(column), -1))
    return torch.from_numpy(np.concatenate(parts))
