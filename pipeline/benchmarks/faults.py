"""Kill a run at random moments, start it again, and look what was lost or done twice."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.demo.corpora import write_demo_corpora
from pipeline.schema import EMBEDDING, ID
from pipeline.storage.locations import exists
from pipeline.storage.manifest import POINTER, open_manifest
from pipeline.storage.shards import read_shard
from pipeline.storage.verification import verify

_EARLIEST = 0.2
"""Share of a run's time before which nothing is killed: until then Python and Ray start."""


class FaultError(RuntimeError):
    """A killed and resumed run did not end as the uninterrupted one."""


@dataclass(frozen=True)
class FaultsReport:
    """Seconds of the uninterrupted run, and of each killed one together with its resumption.

    `kept` are the shards, of embeddings and of the dataset, that each resumption found written.
    """

    units: int
    rows: int
    uninterrupted: float
    interrupted: tuple[float, ...]
    kept: tuple[int, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark."""
        middle = statistics.median(self.interrupted)
        return {
            "name": "faults",
            "value": middle,
            "unit": "s",
            "baseline": self.uninterrupted,
            "ratio": middle / self.uninterrupted,
            "spread": [min(self.interrupted), max(self.interrupted)],
            "machine": f"{os.cpu_count()} CPUs, {sys.platform}",
            "kills": len(self.interrupted),
            "units": self.units,
            "rows": self.rows,
            "shards_kept": list(self.kept),
        }


class FaultTrial:
    """A small corpus of the demo world, a fitted aligner, and nights over it in fresh folders."""

    def __init__(self, folder: Path, *, units: int, rows_per_unit: int) -> None:
        self.folder = folder
        self.units = units
        self._rows_per_unit = rows_per_unit
        rows = units * rows_per_unit
        self.corpora = write_demo_corpora(folder / "corpora", captions=rows, images=200, pairs=1)
        self._call("fit", self._write_config(folder / "prepared"), "encode")
        self.aligner = folder / "prepared" / "aligner"

    def _write_config(self, output: Path) -> Path:
        values: dict[str, Any] = {
            "text": {"path": str(self.corpora.captions)},
            "image": {"path": str(self.corpora.images)},
            "align": {"method": "bures-gromov"},
            "output": {"path": str(output)},
            "units": {"rows_per_shard": self._rows_per_unit},
            "ray": {"encode_actors": 1},
        }
        if output.name != "prepared":
            values["aligner"] = {"path": str(self.aligner)}
        path = self.folder / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def _call(self, command: str, config: Path, *before: str) -> None:
        for one in (*before, command):
            process = self._start(one, config)
            _, errors = process.communicate()
            if process.returncode != 0:
                raise FaultError(f"{one} failed: {errors.decode(errors='replace')[-2000:]}")

    def _start(self, command: str, config: Path) -> subprocess.Popen[bytes]:
        # A session of its own, so that the whole of it can be killed as one group.
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", command, str(config), "-q"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def uninterrupted(self, output: Path) -> float:
        """Run a night to its end in a fresh folder; returns its seconds."""
        start = time.perf_counter()
        self._call("nightly", self._write_config(output))
        return time.perf_counter() - start

    def killed(self, output: Path, after: float) -> bool:
        """Start a night in a fresh folder and kill it; returns False when it had ended before."""
        process = self._start("nightly", self._write_config(output))
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        finally:
            if process.stderr is not None:
                process.stderr.close()
        return False


def rows_digest(root: str) -> tuple[int, str]:
    """Return the number of rows of a dataset and a digest of ids and embedding bytes, by id."""
    receipts = open_manifest(root).receipts
    return digest_of(read_shard(root, receipt, columns=[ID, EMBEDDING]) for receipt in receipts)


def digest_of(tables: Iterable[pa.Table]) -> tuple[int, str]:
    """Return the number of rows and a digest of ids and embedding bytes, by id."""
    rows: list[bytes] = []
    for table in tables:
        width = table.schema.field(EMBEDDING).type.list_size
        values = table.column(EMBEDDING).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        names = table.column(ID).to_pylist()
        for name, embedding in zip(names, values.reshape(-1, width), strict=True):
            rows.append(name.encode() + b"\0" + embedding.tobytes())
    return len(rows), hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def run_faults(
    folder: Path,
    *,
    kills: int,
    seed: int,
    units: int = 40,
    rows_per_unit: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> FaultsReport:
    """Kill a night over `units` units `kills` times, each in a folder of its own, and resume it.

    Raises:
        FaultError: when a resumed night ends in other rows, writes again what had its receipt,
            shows a reader something unfinished, or does not verify.
    """
    trial = FaultTrial(folder, units=units, rows_per_unit=rows_per_unit)
    baseline = trial.uninterrupted(folder / "uninterrupted")
    wanted = rows_digest(str(folder / "uninterrupted" / "dataset"))
    moments = random.Random(seed)
    interrupted, kept = [], []
    for number in range(kills):
        output = folder / f"killed-{number:02d}"
        start = time.perf_counter()
        while not trial.killed(output, baseline * moments.uniform(_EARLIEST, 1.0)):
            shutil.rmtree(output)  # it had ended before: another moment
            start = time.perf_counter()
        _check_readable(output / "dataset", wanted)
        written = _written(output)
        trial.uninterrupted(output)
        interrupted.append(time.perf_counter() - start)
        kept.append(len(written))
        _check_resumed(output, wanted, written)
        shutil.rmtree(output)
        if progress is not None:
            progress(number + 1, kills)
    return FaultsReport(units, wanted[0], baseline, tuple(interrupted), tuple(kept))


def _check_readable(dataset: Path, wanted: tuple[int, str]) -> None:
    """Raise FaultError if a reader sees anything but nothing or the whole."""
    if exists(str(dataset / POINTER)) and rows_digest(str(dataset)) != wanted:
        raise FaultError(f"{dataset} shows a reader rows of an unfinished run")


def _written(output: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of the shards that have their receipt, by path below the output."""
    found = {}
    for receipt in output.rglob("receipts/*.json"):
        shard = receipt.parent.parent / "data" / f"{receipt.stem}.parquet"
        state = shard.stat()
        found[str(shard.relative_to(output))] = (state.st_ino, state.st_mtime_ns)
    return found


def _check_resumed(
    output: Path, wanted: tuple[int, str], written: dict[str, tuple[int, int]]
) -> None:
    dataset = output / "dataset"
    problems = verify(str(dataset)).problems
    if problems:
        raise FaultError(f"{dataset} does not verify: {problems[0].path}: {problems[0].what}")
    if rows_digest(str(dataset)) != wanted:
        raise FaultError(f"{dataset} holds other rows than the uninterrupted run's")
    after = _written(output)
    again = [path for path, state in written.items() if after.get(path) != state]
    if again:
        raise FaultError(f"{again[0]} had its receipt and was written again")
