"""Forecasts beside what runs take: the corpora, a run, and the shape of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.benchmarks.plan import (
    LARGER,
    Forecast,
    PlanReport,
    _forecast,
    _write_captions,
    _write_embedded,
)
from pipeline.config import load_config
from pipeline.storage import open_manifest
from tests.forecast.samples import ENCODING, PLANNING, calibration


def test_a_run_is_set_beside_its_forecast(tmp_path: Path) -> None:
    config = _write_embedded(tmp_path / "corpus", 1000, 16)
    stored = tmp_path / "stored.json"
    stored.write_text(calibration(stages=(PLANNING, ENCODING), images=1000).to_json())
    found = _forecast(config, 1000, stored)
    assert open_manifest(f"{load_config(config).output.path}/dataset").rows == found.rows == 1000
    assert found.predicted > 8.0  # the start that the calibration has
    assert found.measured > 0.5


def test_captions_are_drawn_for_a_run(tmp_path: Path) -> None:
    loaded = load_config(_write_captions(tmp_path / "captions", 1000, 0))
    assert loaded.text.path is not None
    assert len(Path(loaded.text.path).read_text().splitlines()) == 1000
    assert loaded.align.method == "anisoalign"


def test_the_report_is_of_every_size() -> None:
    forecasts = {"1x": Forecast(10, 30.0, 20.0), "10x": Forecast(10 * LARGER, 110.0, 100.0)}
    found = PlanReport(forecasts, {"captions": 60.0}).to_mapping()
    assert (found["value"], found["baseline"], found["rows"]) == (110.0, 100.0, 100)
    assert found["ratio"] == pytest.approx(1.1)
    assert found["parts"]["1x"]["ratio"] == pytest.approx(1.5)
    assert found["calibration_seconds"] == {"captions": 60.0}
