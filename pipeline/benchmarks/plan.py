"""What `anisoalign plan` forecasts against what runs then take, on a corpus and on ten times it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.benchmarks.commands import run_command
from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import step_counter
from pipeline.benchmarks.synthesize import write_config, write_embeddings
from pipeline.cluster.forecasting import workload
from pipeline.config import load_config
from pipeline.demo.corpora import write_demo_corpora
from pipeline.forecast.calibration import Calibration
from pipeline.forecast.prediction import predict

LARGER = 10
IMAGES = 2_000
_EMBEDDED_IMAGES = 20_000
_CAPTION_SHARD = 4_096
"""Rows of a shard of captions, so that the smaller run has several."""


@dataclass(frozen=True)
class Forecast:
    """Seconds that were predicted of a run, and that it took."""

    rows: int
    predicted: float
    measured: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the figures in the shape of a benchmark's part."""
        return {
            "rows": self.rows,
            "value": self.predicted,
            "baseline": self.measured,
            "ratio": self.predicted / self.measured,
            "spread": [self.predicted, self.predicted],
        }


@dataclass(frozen=True)
class PlanReport:
    """Forecasts by what was run, and the seconds that each calibration took."""

    forecasts: Mapping[str, Forecast]
    calibrations: Mapping[str, float]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is the last forecast."""
        last = [*self.forecasts.values()][-1].to_mapping()
        return {
            "name": "plan",
            "unit": "s",
            **last,
            "machine": machine_facts(),
            "calibration_seconds": dict(self.calibrations),
            "parts": {name: one.to_mapping() for name, one in self.forecasts.items()},
        }


def run_plan(
    folder: Path,
    *,
    captions: int,
    embeddings: int,
    dimension: int,
    progress: Callable[[int, int], None] | None = None,
) -> PlanReport:
    """Calibrate on a corpus, and run it and one of ten times the rows.

    Captions are encoded by the packaged encoder, fitted by AnisoAlign and corrected; embeddings
    are corrected by ReAlign.

    Raises:
        CommandError: when a command fails.
    """
    forecasts: dict[str, Forecast] = {}
    calibrations: dict[str, float] = {}
    done = step_counter(progress, 6)

    for name, rows, write in (
        ("captions", captions, _write_captions),
        ("embeddings", embeddings, _write_embedded),
    ):
        configs = [write(folder / f"{name}-{n}", n, dimension) for n in (rows, LARGER * rows)]
        stored = folder / f"{name}.json"
        calibrations[name] = run_command("plan", configs[0], "--save", str(stored)).seconds
        done()
        for config, count in zip(configs, (rows, LARGER * rows), strict=True):
            forecasts[f"{name}, {count:,} rows"] = _forecast(config, count, stored)
            done()
    return PlanReport(forecasts, calibrations)


def _forecast(config: str, rows: int, stored: Path) -> Forecast:
    loaded = load_config(config)
    costs = Calibration.from_json(stored.read_bytes())
    predicted = predict(costs, workload(loaded, costs, rows=rows)).seconds
    run_command("run", config)
    summary = json.loads((Path(loaded.output.path) / "summary.json").read_bytes())
    return Forecast(rows, predicted, summary["seconds"])


def _write_captions(folder: Path, rows: int, dimension: int) -> str:
    del dimension  # that of the packaged encoder
    drawn = write_demo_corpora(folder / "corpora", captions=rows, images=IMAGES, pairs=1)
    values = {
        "text": {"path": str(drawn.captions)},
        "image": {"path": str(drawn.images)},
        "output": {"path": str(folder / "run")},
        "units": {"rows_per_shard": _CAPTION_SHARD},
        "ray": {"address": "local"},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(config)


def _write_embedded(folder: Path, rows: int, dimension: int) -> str:
    write_embeddings(folder / "texts", rows, dimension, 0)
    write_embeddings(folder / "images", min(rows, _EMBEDDED_IMAGES), dimension, 1)
    return write_config(folder, folder / "run", "realign")
