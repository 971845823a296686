"""From stored embeddings to a verified dataset by ReAlign, against a script of four passes."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.align.settings import MethodName
from pipeline.benchmarks.clouds import random_cloud
from pipeline.benchmarks.commands import CommandError, TreeMemory, run_command
from pipeline.benchmarks.four_passes import chunks
from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, step_counter
from pipeline.readers import SubstituteLookup
from pipeline.schema import EMBEDDING, ID, embedding_type
from pipeline.storage.corpus import IDS_ENDINGS

IMAGES = 20_000
_FILE_ROWS = 100_000
_COMPARED = 1000


@dataclass(frozen=True)
class SynthesizeReport:
    """Rows a second from file to verified dataset, and to their .pkl; both peaks of memory in MB.

    `error` is the largest difference between both, in rows of each chunk.
    """

    rows: int
    dimension: int
    rates: Rates
    peaks_mb: tuple[float, float]
    error: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark."""
        return {
            "name": "synthesize",
            "unit": "rows/s",
            **self.rates.to_mapping(),
            "machine": machine_facts(),
            "rows": self.rows,
            "dimension": self.dimension,
            "peak_memory_mb": {"ours": self.peaks_mb[0], "baseline": self.peaks_mb[1]},
            "error": self.error,
        }


def run_synthesize(
    folder: Path,
    *,
    rows: int,
    dimension: int,
    repeats: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SynthesizeReport:
    """Write random embeddings in both shapes and run both ways, in turns.

    Raises:
        CommandError: when one of them fails.
    """
    for name, count, one in (("texts", rows, seed), ("images", IMAGES, seed + 1)):
        write_arrays(folder / name, count, dimension, one)
    done = step_counter(progress, 1 + 2 * repeats)

    done()
    ours, theirs, peaks = [], [], [0.0, 0.0]
    for repetition in range(repeats):
        dataset = folder / f"run-{repetition}"
        seconds, peak = from_file_to_dataset(folder, dataset)
        ours.append(rows / seconds)
        peaks[0] = max(peaks[0], peak)
        done()
        seconds, peak = _four_passes(folder)
        theirs.append(rows / seconds)
        peaks[1] = max(peaks[1], peak)
        done()
    error = _difference(folder, folder / "run-0" / "dataset")
    rates = Rates(tuple(ours), tuple(theirs))
    return SynthesizeReport(rows, dimension, rates, (peaks[0], peaks[1]), error)


def write_arrays(folder: Path, rows: int, dimension: int, seed: int) -> None:
    """Write a random cloud as .npy with ids beside it, and as pickled lists of {"id", "embed"}."""
    folder.mkdir(parents=True)
    for number, ids, values in _files(rows, dimension, seed):
        np.save(folder / f"{number:05d}.npy", values)
        named = folder / f"{number:05d}{IDS_ENDINGS[0]}"
        named.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
        found = [{"id": one, "embed": row.copy()} for one, row in zip(ids, values, strict=True)]
        with (folder / f"{number:05d}.pkl").open("wb") as file:
            pickle.dump(found, file, protocol=pickle.HIGHEST_PROTOCOL)


def write_embeddings(folder: Path, rows: int, dimension: int, seed: int) -> None:
    """Write a random cloud as Parquet, float32."""
    folder.mkdir(parents=True)
    for number, ids, values in _files(rows, dimension, seed):
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), type=embedding_type(dimension, "float32")
        )
        table = pa.table({ID: ids, EMBEDDING: column})
        pq.write_table(table, folder / f"{number:05d}.parquet", row_group_size=16_384)


def _files(
    rows: int, dimension: int, seed: int
) -> Iterator[tuple[int, list[str], npt.NDArray[np.float32]]]:
    """Yield (number, ids, embeddings (n, d)) of each file of a cloud."""
    for number, start in enumerate(range(0, rows, _FILE_ROWS)):
        count = min(_FILE_ROWS, rows - start)
        # Another draw of the same cloud: its axes and mean hang on the seed alone.
        values = random_cloud(count, dimension, seed, draw=number).numpy()
        yield number, [f"row-{row:010d}" for row in range(start, start + count)], values


def write_config(folder: Path, output: Path, method: MethodName) -> str:
    """Write the configuration of a run over `folder`/texts and images; returns its path."""
    sides: dict[str, dict[str, str]] = {}
    for side in ("text", "image"):
        sides[side] = {"path": f"{folder}/{side}s/*.npy"}
        if not any((folder / f"{side}s").glob("*.npy")):
            sides[side] = {"path": f"{folder}/{side}s/*.parquet", "embedding_column": EMBEDDING}
    settings = {
        **sides,
        "align": {"method": method},
        "output": {"path": str(output)},
        "ray": {"address": "local"},
    }
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(config)


def from_file_to_dataset(folder: Path, output: Path) -> tuple[float, float]:
    """Run and verify over the embeddings in a folder; returns seconds and the peak in MB."""
    ran = run_command("run", write_config(folder, output, "realign"), watch_memory=True)
    verified = run_command("verify", f"{output}/dataset", watch_memory=True)
    return ran.seconds + verified.seconds, max(ran.peak_mb, verified.peak_mb)


def _four_passes(folder: Path) -> tuple[float, float]:
    arguments = [f"{folder}/texts", f"{folder}/images", f"{folder}/theirs.pkl"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.benchmarks.four_passes", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    watcher = TreeMemory(process.pid)
    _, errors = process.communicate()
    seconds, peak = time.perf_counter() - start, watcher.stop()
    if process.returncode != 0:
        raise CommandError(f"the script of four passes failed: {errors[-2000:]}")
    return seconds, peak


def _difference(theirs: Path, dataset: Path) -> float:
    lookup, largest = SubstituteLookup(str(dataset)), 0.0
    for ids, rows in chunks(theirs):
        stride = -(-len(ids) // _COMPARED)
        found: npt.NDArray[Any] = lookup.lookup(ids[::stride])
        largest = max(largest, float(np.abs(found - rows[::stride]).max()))
    return largest
