"""Small corpora and runs that the tests of flows and of the command line share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from click.testing import CliRunner, Result

from pipeline.cli import cli
from pipeline.cluster.lifecycle import run_flow
from pipeline.cluster.run import run as whole_run
from pipeline.cluster.session import ray_session
from pipeline.config import RunConfig, parse_config
from pipeline.report.console import Reporter
from pipeline.storage import Manifest, embeddings_of, open_manifest, read_shard

WIDTH, TEXTS, IMAGES = 12, 120, 150

SMALL_ALIGN: dict[str, Any] = {
    "rank": 4,
    "prior": {"steps": 8, "width": 16, "batch_size": 32, "neighbours": 1},
    "refiner": {"steps": 6, "width": 16, "batch_size": 32},
}
"""An aligner that trains in a moment."""

ONE_ACTOR = {"encode_actors": 1}
"""Loading the encoder once is most of what a small flow costs."""


def overlaid(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with others laid over them."""
    merged = dict(values)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = overlaid(below, value) if nested else value
    return merged


def small_values(run: Path, /, **sections: Any) -> dict[str, Any]:
    """Return plain configuration values of a small run; sections are laid over the defaults."""
    base = {
        "align": SMALL_ALIGN,
        "output": {"path": str(run)},
        "units": {"rows_per_shard": 50},
        "ray": ONE_ACTOR,
    }
    return overlaid(base, sections)


def small_config(run: Path, /, **sections: Any) -> RunConfig:
    """Return the configuration of a small run."""
    return parse_config(small_values(run, **sections))


def unit_cloud(rows: int, width: int, mean: float, seed: int) -> np.ndarray:
    """Return anisotropic unit rows (n, d) around a mean, float32."""
    draws = np.random.default_rng(seed).normal(size=(rows, width))
    centre = np.roll(np.linspace(-1, 1, width), round(5 * mean)) * mean
    values = draws * np.linspace(1.2, 0.2, width) + centre
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def write_embeddings(path: Path, stem: str, values: np.ndarray, **columns: Any) -> Path:
    """Write a Parquet file of ids, texts and embeddings (lists of float32)."""
    rows = len(values)
    table = {
        "id": [f"{stem}-{row:04d}" for row in range(rows)],
        "text": [f"{stem} number {row}" for row in range(rows)],
        "embedding": pa.array(list(values), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table({**table, **columns}), path)
    return path


def write_clouds(folder: Path) -> Path:
    """Write texts.parquet and images.parquet: two clouds with a gap."""
    write_embeddings(folder / "texts.parquet", "text", unit_cloud(TEXTS, WIDTH, -0.4, 1))
    write_embeddings(folder / "images.parquet", "image", unit_cloud(IMAGES, WIDTH, 0.6, 2))
    return folder


def cloud_values(clouds: Path, run: Path, /, **sections: Any) -> dict[str, Any]:
    """Return plain values of a run on precomputed clouds, three units of texts."""
    sides = {
        "text": {"path": str(clouds / "texts.parquet"), "embedding_column": "embedding"},
        "image": {"path": str(clouds / "images.parquet"), "embedding_column": "embedding"},
    }
    return small_values(run, **overlaid(sides, sections))


def cloud_config(clouds: Path, run: Path, /, **sections: Any) -> RunConfig:
    """Return the configuration of a run on precomputed clouds."""
    return parse_config(cloud_values(clouds, run, **sections))


def execute(config: RunConfig, flow: Any = whole_run, reporter: Reporter | None = None) -> Any:
    """Run a flow on the Ray that is there; returns what it returns, a whole run's with its id."""
    if flow is whole_run:
        return run_flow(config, "run", flow, reporter or Reporter(quiet=True))
    with ray_session(config):
        return flow(config, reporter or Reporter(quiet=True))


def write_config(path: Path, values: Mapping[str, Any]) -> str:
    """Write a YAML configuration; returns its path."""
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return str(path)


def invoke(*arguments: str) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(cli, list(arguments), prog_name="anisoalign")


def error_line(result: Result) -> str:
    """Return the one line on stderr of a quiet command that failed, without "error: "."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: "), lines[0]
    assert "Traceback" not in result.output
    return lines[0].removeprefix("error: ")


def dataset_rows(root: Path) -> tuple[Manifest, pa.Table]:
    """Return a dataset's manifest and all its rows, in order of id."""
    manifest = open_manifest(str(root))
    table = pa.concat_tables(read_shard(str(root), receipt) for receipt in manifest.receipts)
    return manifest, table.sort_by("id")


def by(column: str, table: pa.Table) -> dict[str, np.ndarray]:
    """Return embeddings by the value of a column."""
    return dict(zip(table.column(column).to_pylist(), embeddings_of(table), strict=True))


def quarantined_rows(root: Path) -> list[tuple[str, int, str]]:
    """Return (file stem, row in the unit, reason) of every quarantined row of a dataset folder."""
    rows = []
    for path in sorted((root / "quarantine").glob("*.parquet")):
        table = pq.read_table(path)
        rows += [(path.stem, r["row"], r["reason"]) for r in table.to_pylist()]
    return rows


def recentring_error(table: pa.Table, image: torch.Tensor) -> float:
    """Return the distance of the substitutes' mean from the images' mean."""
    mean = embeddings_of(table).astype(np.float64).mean(axis=0)
    return float(np.linalg.norm(mean - image.to(torch.float64).mean(dim=0).numpy()))
