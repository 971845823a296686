"""How fast a dataset is exported to each format, and in how much memory."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.readers import peak_memory, write_random_dataset
from pipeline.export.exporting import LAYOUTS, export
from pipeline.storage import locations
from pipeline.storage.manifest import open_manifest

REPEATS = 3
LARGER = 10
"""Memory is measured on the dataset and on one of so many times its rows."""


@dataclass(frozen=True)
class FormatRates:
    """Rows a second of each repetition, bytes written, and peaks of own memory in MB.

    The peaks are on the dataset and on the larger one.
    """

    rows_per_second: tuple[float, ...]
    bytes: int
    peaks: tuple[float, float]


@dataclass(frozen=True)
class ExportsReport:
    """Rates by format; those of the baseline, which copies the shards' bytes and hashes them."""

    rows: int
    dimension: int
    formats: dict[str, FormatRates]
    baseline: tuple[float, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; its value is of the slowest format."""
        baseline = statistics.median(self.baseline)
        found: dict[str, dict[str, Any]] = {}
        for name, rates in self.formats.items():
            value = statistics.median(rates.rows_per_second)
            small, large = rates.peaks
            found[name] = {
                "value": value,
                "ratio": value / baseline,
                "spread": [min(rates.rows_per_second), max(rates.rows_per_second)],
                "mb_per_s": value * rates.bytes / self.rows / 1e6,
                "bytes": rates.bytes,
                "peak_memory_mb": {"rows": small, f"{LARGER}x rows": large},
            }
        slowest = min(found, key=lambda name: found[name]["value"])
        return {
            "name": "exports",
            "value": found[slowest]["value"],
            "unit": "rows/s",
            "baseline": baseline,
            "ratio": found[slowest]["ratio"],
            "spread": found[slowest]["spread"],
            "machine": machine_facts(),
            "slowest": slowest,
            "rows": self.rows,
            "dimension": self.dimension,
            "formats": found,
        }


@dataclass(frozen=True)
class ExportOnce:
    """Picklable work for `peak_memory`: an export to a folder that is deleted afterwards."""

    format: str

    def __call__(self, root: str, seed: int) -> None:
        """Export the dataset in `root`."""
        with tempfile.TemporaryDirectory(dir=Path(root).parent) as folder:
            export(root, f"{folder}/out", LAYOUTS[self.format](seed=seed))


def run_exports(
    folder: Path,
    *,
    rows: int,
    dimension: int,
    formats: Sequence[str],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ExportsReport:
    """Write two datasets of random unit rows in a folder, float16, and export them."""
    root, larger, target = (str(folder / name) for name in ("dataset", "larger", "out"))
    write_random_dataset(root, rows, dimension, seed)
    write_random_dataset(larger, rows * LARGER, dimension, seed)
    baseline, found = [], {}
    for _ in range(REPEATS):
        start = time.perf_counter()
        copy_shards(root, target)
        baseline.append(rows / (time.perf_counter() - start))
        shutil.rmtree(target)
    for done, name in enumerate(formats, start=1):
        rates, size = [], 0
        for _ in range(REPEATS):
            start = time.perf_counter()
            size = export(root, target, LAYOUTS[name](seed=seed)).bytes
            rates.append(rows / (time.perf_counter() - start))
            shutil.rmtree(target)
        work = ExportOnce(name)
        peaks = (peak_memory(work, root, seed), peak_memory(work, larger, seed))
        found[name] = FormatRates(tuple(rates), size, peaks)
        if progress is not None:
            progress(done, len(formats))
    return ExportsReport(rows, dimension, found, tuple(baseline))


def copy_shards(root: str, target: str) -> list[str]:
    """Write a dataset's shards as they are to another folder; returns their sha256."""
    digests = []
    for receipt in open_manifest(root).receipts:
        data = locations.read_bytes(locations.join_inside(root, receipt.path))
        locations.write_bytes(locations.join_inside(target, receipt.path), data)
        digests.append(hashlib.sha256(data).hexdigest())
    return digests
