"""The benchmarks of whole commands, at the smallest size, end in figures."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.align.baselines import ReAlign
from pipeline.benchmarks import startup
from pipeline.benchmarks.bare_loop import bare_rate
from pipeline.benchmarks.commands import CommandError, TreeMemory, run_command
from pipeline.benchmarks.four_passes import realign
from pipeline.benchmarks.rates import Rates
from pipeline.benchmarks.scaling import UNITS, EncodeRuns, ScalingReport, pinned_nodes
from pipeline.benchmarks.synthesize import write_arrays
from pipeline.storage import open_manifest
from tests.benchmarks.test_compute import figures


def test_startup_is_that_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "REPEATS", 1)
    monkeypatch.setattr(startup, "_FIRST_UNIT_REPEATS", 1)
    found = figures("startup")
    assert set(found["parts"]) == {
        "anisoalign --help",
        "anisoalign config validate",
        "first unit of anisoalign encode written",
    }
    values = [part["value"] for part in found["parts"].values()]
    assert values == sorted(values)


def test_synthesize_and_memory() -> None:
    found = figures("synthesize", "--rows", "2000", "--dimension", "16", "--repeats", "1")
    assert found["error"] < 2e-3  # float16
    assert all(peak > 10 for peak in found["peak_memory_mb"].values())
    found = figures("memory", "--rows", "1000", "--dimension", "16")
    assert found["rows"] == [1000, 4000]
    assert found["value"] > 100


def test_fit() -> None:
    sizes = ("--rows", "1000", "--images", "1000", "--dimension", "16", "--repeats", "1")
    assert figures("fit", *sizes, "--method", "realign")["method"] == "realign"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_nodes_are_pinned_and_encode(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    captions = [f"a red circle number {row}" for row in range(160)]
    runs, token = EncodeRuns(tmp_path, captions, "demo", None), os.environ.get("RAY_AUTH_TOKEN")
    with pinned_nodes(cores) as address:
        runs.rate(2, address)  # noise, at this size
    assert os.environ.get("RAY_AUTH_TOKEN") == token
    for number, units in enumerate(UNITS, start=1):
        manifest = open_manifest(str(tmp_path / f"run-{number}" / "embeddings" / "text"))
        assert (manifest.units, manifest.rows) == (units, 10 * units)


def test_a_plain_loop_encodes_on_each_core(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a red circle number {row}\n" for row in range(40)))
    one = bare_rate(path, 16, model="demo", pretrained=None, cores=1)
    assert one > 0
    with pytest.raises(CommandError, match="plain loop"):
        bare_rate(path, 16, model="no-such-model", pretrained=None, cores=2)


def test_scaling_is_that_of_two_workers_against_one() -> None:
    two, one = Rates((180.0, 190.0), (100.0, 100.0)), Rates((150.0, 150.0), (100.0, 100.0))
    loop = Rates((180.0, 190.0), (200.0, 200.0))
    report = ScalingReport("demo", 160, actors=two, nodes=one, loop=loop).to_mapping()
    assert report["ratio"] == pytest.approx(1.85)
    assert report["parts"]["nodes against one"]["ratio"] == pytest.approx(1.5)
    assert report["parts"]["workers against a plain loop"]["ratio"] == pytest.approx(0.925)


def test_the_script_of_four_passes_is_realign(tmp_path: Path) -> None:
    for name, seed in (("texts", 0), ("images", 1)):
        write_arrays(tmp_path / name, 300, 8, seed)
    realign(tmp_path / "texts", tmp_path / "images", tmp_path / "out.pkl")
    theirs = pickle.loads((tmp_path / "out.pkl").read_bytes())
    clouds = {}
    for name in ("texts", "images"):
        rows = pickle.loads((tmp_path / name / "00000.pkl").read_bytes())
        clouds[name] = torch.from_numpy(np.stack([row["embed"] for row in rows]))
    ours = ReAlign().fit(clouds["images"], clouds["texts"]).transform(clouds["texts"])
    np.testing.assert_allclose(np.stack([row["embed"] for row in theirs]), ours, atol=1e-5)
    assert [row["id"] for row in theirs[:2]] == ["row-0000000000", "row-0000000001"]


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(CommandError, match=r"verify failed: .*no-such"):
        run_command("verify", "/no-such-dataset")


def test_memory_is_that_of_the_tree() -> None:
    watcher = TreeMemory(os.getpid())
    assert watcher.stop() >= 0
    assert watcher._now() > 20
