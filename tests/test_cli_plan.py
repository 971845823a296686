"""`anisoalign plan`: what it prints, what it keeps, how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import calibration as measuring
from pipeline.cluster import watched
from pipeline.cluster.forecasting import configuration_facts
from pipeline.config import load_config
from pipeline.forecast.calibration import Calibration
from tests.cluster.samples import cloud_values, error_line, invoke, small_values, write_config
from tests.forecast.samples import calibration

ROWS = 10**10


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Return a configuration whose corpora are nowhere: a stored calibration needs none."""
    values = small_values(
        tmp_path / "run",
        text={"path": "s3://elsewhere/captions"},
        image={"path": "s3://elsewhere/images"},
        units={"rows_per_shard": 32_768},
    )
    return write_config(tmp_path / "c.yaml", values)


@pytest.fixture
def stored(tmp_path: Path, config: str) -> str:
    """Return a calibration of that configuration."""
    found = calibration(gpus=8, configuration=configuration_facts(load_config(config)))
    path = tmp_path / "stored.json"
    path.write_text(found.to_json())
    return str(path)


def said(*arguments: str) -> dict[str, Any]:
    result = invoke("plan", *arguments, "--json", "-q")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_a_forecast_of_ten_thousand_million_rows(config: str, stored: str):
    arguments = [config, "--calibration", stored, "--rows", str(ROWS), "--gpus", "64"]
    found = said(*arguments, "--cpus", "1024", "--price", "200")
    assert (found["rows"], found["gpus"], found["cpus"]) == (ROWS, 64, 1024)
    assert found["cost"] == pytest.approx(200 * found["seconds"] / 3600)
    assert found["bottleneck"]["title"] == "encoding text"
    assert found["bottleneck"]["bound_by"] == "GPUs"
    assert sum(stage["seconds"] for stage in found["stages"]) == pytest.approx(found["seconds"])
    half = said(*arguments, "--cpus", "1024", "--gpus", "128")
    seconds = [
        {stage["title"]: stage["seconds"] for stage in one["stages"]}["encoding text"]
        for one in (found, half)
    ]
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.01)


def test_what_it_prints(config: str, stored: str):
    arguments = ("--calibration", stored, "--rows", str(ROWS), "--gpus", "64", "--price", "200")
    result = invoke("plan", config, *arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].strip() == "Forecast of 10,000,000,000 rows"
    assert lines[1].strip() == "and 10,000 images, on 2 CPUs and 64 GPUs"
    assert "…" not in result.stdout
    for shown in ("encoding text", "memory of the driver", "storage in all", "cost", "610,357"):
        assert any(shown in line for line in lines), shown
    assert lines[-1].startswith("bottleneck: ")
    assert lines[-1].endswith(".")
    without = invoke("plan", config, "--calibration", stored)
    assert "cost" not in without.stdout
    assert "Forecast of 1,000,000 rows" in without.stdout  # as the corpora were
    assert "8 GPUs" in without.stdout


def test_what_was_measured_is_kept(
    local_ray: None, clouds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (("_SECONDS", 0.05), ("_SETTLED_S", 0.0), ("_UNITS_A_CPU", 2)):
        monkeypatch.setattr(watched, name, value)
    values = cloud_values(clouds, tmp_path / "run", align={"method": "realign"})
    config = write_config(tmp_path / "c.yaml", values)
    kept = tmp_path / "kept.json"
    found = said(config, "--save", str(kept), "--rows", "1000")
    costs = Calibration.from_json(kept.read_bytes())
    assert not (tmp_path / "run").exists()
    assert costs.configuration["method"] == "realign"
    assert costs.machine["cpus"] >= 1
    again = said(config, "--calibration", str(kept), "--rows", "1000")
    assert again == found
    refused = invoke(
        "plan", config, "--calibration", str(kept), "--set", "align.method=centroid", "-q"
    )
    assert refused.exit_code == 1
    assert "method realign, the configuration has centroid" in error_line(refused)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "measured beside a GPU"),
        (["--calibration", "gone.json"], "cannot read the calibration gone.json: No such file"),
        (["--set", "encoder.model=ViT-B-32"], "is of encoder.model demo, the configuration has"),
    ],
)
def test_errors_are_one_line(config: str, stored: str, arguments: list[str], message: str):
    result = invoke("plan", config, "--calibration", stored, *arguments, "-q")
    assert result.exit_code == 1
    assert message in error_line(result)


def test_gpus_that_were_not_measured(config: str, tmp_path: Path):
    path = tmp_path / "cpu.json"
    facts = configuration_facts(load_config(config))
    path.write_text(calibration(configuration=facts).to_json())
    result = invoke("plan", config, "--calibration", str(path), "--gpus", "4", "-q")
    assert result.exit_code == 1
    assert "measure on a machine with the GPU" in error_line(result)


def test_a_damaged_calibration_is_named(config: str, tmp_path: Path):
    path = tmp_path / "damaged.json"
    path.write_text(calibration().to_json().replace('"cpus": 2', '"cpus": -2'))
    result = invoke("plan", config, "--calibration", str(path), "-q")
    assert result.exit_code == 1
    assert error_line(result) == f"{path}: not a calibration: cpus is less than 1"


@pytest.mark.parametrize(
    "arguments",
    [["--rows", "0"], ["--cpus", "none"], ["--price", "-1"], ["--save", "a", "--calibration", "b"]],
)
def test_wrong_usage_exits_2(config: str, arguments: list[str]):
    result = invoke("plan", config, *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_nothing_is_measured_where_the_figures_cannot_be_kept(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "calibrate", lambda *given: pytest.fail("was measured"))
    (tmp_path / "file").write_text("")
    result = invoke("plan", config, "--save", str(tmp_path / "file" / "kept.json"), "-q")
    assert result.exit_code == 1
    assert str(tmp_path / "file") in error_line(result)


def test_stages_are_called_by_the_names_of_the_sides(config: str, stored: str):
    names = ["--set", "names.source=audio", "--set", "names.target=text"]
    arguments = [config, "--calibration", stored, "--gpus", "8"]
    found = said(*arguments, *names)
    titles = [stage["title"] for stage in found["stages"]]
    assert {"moments of audio", "encoding audio", "encoding text"} <= set(titles)
    assert found["seconds"] == said(*arguments)["seconds"]
    shown = invoke("plan", *arguments, *names)
    assert "10,000 texts, on 2 CPUs" in " ".join(shown.stdout.split())
    assert f"bottleneck: {found['bottleneck']['title']} " in shown.stdout
    assert "audio" in found["bottleneck"]["title"]
