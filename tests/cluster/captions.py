"""A corpus of captions with embeddings in four units, and its correction by an aligner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.align import create_aligner
from pipeline.cluster.synthesize import synthesize
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from tests.cluster.samples import execute, overlaid, small_config, unit_cloud, write_embeddings

ROWS, UNITS, WIDTH = 40, 4, 12


class Recorder:
    """An observer that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.events.append((name, dict(fields)))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.events if found == name]


def write_corpus(folder: Path) -> Path:
    """Write texts/ beside an aligner that takes no time to load; returns it."""
    clouds = [torch.from_numpy(unit_cloud(50, WIDTH, mean, 3)) for mean in (0.4, -0.3)]
    create_aligner("centroid").fit(*clouds).save(str(folder / "aligner"), {})
    write_captions(folder / "texts")
    return folder / "texts"


def write_captions(folder: Path, odd: str = "a red circle", first: str = "t00") -> None:
    """Write a folder of four files, a unit each; the third has an odd caption."""
    ids = [first, *(f"t{row:02d}" for row in range(1, ROWS))]
    texts = [odd if row == 25 else f"a red circle {row}" for row in range(ROWS)]
    values = unit_cloud(ROWS, WIDTH, 0.1, 4)
    folder.mkdir(exist_ok=True)
    for unit, start in enumerate(range(0, ROWS, ROWS // UNITS)):
        rows = slice(start, start + ROWS // UNITS)
        path = folder / f"{unit}.parquet"
        write_embeddings(path, "t", values[rows], id=ids[rows], text=texts[rows])


def correcting(corpus: Path, **sections: Any) -> RunConfig:
    folder = corpus.parent
    text = {"path": str(corpus), "embedding_column": "embedding"}
    fixed = {
        "text": text,
        "aligner": {"path": str(folder / "aligner")},
        "units": {"rows_per_shard": ROWS // UNITS, "max_attempts": 2},
        "rejects": {"check_ids": False},
    }
    return small_config(folder / "run", **overlaid(fixed, sections))


def correct(config: RunConfig, recorder: Recorder | None = None) -> Any:
    reporter = Reporter(quiet=True)
    with reporter.observed_by(recorder or Recorder()):
        return execute(config, synthesize, reporter)


def shards(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "run/dataset/data").glob("*.parquet")}
