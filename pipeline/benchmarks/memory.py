"""How much memory a run takes, all its processes together, on a corpus and on one four times it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.synthesize import IMAGES, from_file_to_dataset, write_embeddings

LARGER = 4


@dataclass(frozen=True)
class MemoryReport:
    """Peaks in MB on `rows` rows, and on `LARGER` times as many."""

    rows: int
    dimension: int
    peaks: tuple[float, float]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is on the larger corpus."""
        small, large = self.peaks
        return {
            "name": "memory",
            "unit": "MB",
            "value": large,
            "baseline": small,
            "ratio": large / small,
            "spread": [large, large],
            "machine": machine_facts(),
            "rows": [self.rows, LARGER * self.rows],
            "dimension": self.dimension,
        }


def run_memory(
    folder: Path,
    *,
    rows: int,
    dimension: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryReport:
    """Fit ReAlign and write a dataset of both corpora, from Parquet, and verify it.

    Raises:
        CommandError: when a run fails.
    """
    peaks = []
    for step, count in enumerate((rows, LARGER * rows)):
        inside = folder / f"rows-{count}"
        write_embeddings(inside / "texts", count, dimension, seed)
        write_embeddings(inside / "images", IMAGES, dimension, seed + 1)
        _, peak = from_file_to_dataset(inside, inside / "run")
        peaks.append(peak)
        if progress is not None:
            progress(step + 1, 2)
    return MemoryReport(rows, dimension, (peaks[0], peaks[1]))
