"""Evaluations as files: what is written reads back, what is not one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.geometry import separate_rounds, split_rounds
from pipeline.evaluation.pairs import Pairs
from pipeline.evaluation.results import read_results, write_results
from tests.align.clouds import clouds

PAIRS = Pairs(*clouds(60, 60))
METRICS = {"methods": {}, "gap": {}, "n": 30, "seed": 0}
FOUND = Comparison(METRICS, {"spectra": {"image": [0.1]}})


def test_what_is_written_reads_back(tmp_path: Path):
    folder = tmp_path / "deep" / "out"
    write_results(folder, FOUND, split_rounds(PAIRS, 0.5, 3))
    assert read_results(folder) == {"metrics": METRICS, "curves": FOUND.curves}
    split = json.loads((folder / "split.json").read_text())
    assert set(split) == {"image", "text", "held_out"}
    assert sorted(split["image"] + split["held_out"]) == list(range(60))


def test_several_splits_are_listed_and_clouds_have_none(tmp_path: Path):
    write_results(tmp_path, FOUND, split_rounds(PAIRS, 0.5, 3, 2))
    (first, second) = json.loads((tmp_path / "split.json").read_text())["splits"]
    assert (first["seed"], second["seed"]) == (3, 4)
    assert first["held_out"] == split_rounds(PAIRS, 0.5, 3)[0].split.held_out.tolist()
    assert first["held_out"] != second["held_out"]
    write_results(tmp_path, FOUND, separate_rounds(PAIRS, PAIRS, 0))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "curves.json"}


def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path):
    nothing = Comparison({**METRICS, "gap": {"c_lambda": float("nan")}}, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path, nothing, [])
    (tmp_path / "metrics.json").write_text(json.dumps(nothing.metrics))
    (tmp_path / "curves.json").write_text('{"spectra": [1.0, Infinity, -Infinity]}')
    assert read_results(tmp_path) == {
        "metrics": {**METRICS, "gap": {"c_lambda": None}},
        "curves": {"spectra": [1.0, None, None]},
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, "", "there is no folder"),
        ("other.json", "{}", "there is no .*metrics.json; write one with"),
        ("metrics.json", "{", "metrics.json is not JSON"),
        ("metrics.json", "[]", "metrics.json must hold an object, not list"),
        ("metrics.json", '{"methods": {}}', "metrics.json has no gap"),
        ("metrics.json", json.dumps(METRICS), "there is no .*curves.json"),
    ],
)
def test_folders_without_an_evaluation(tmp_path: Path, name: str | None, content: str, said: str):
    folder = tmp_path / "run"
    if name is not None:
        folder.mkdir()
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_results(folder)
