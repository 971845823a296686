"""The demo as a newcomer runs it: one command, on a Ray of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.align import load_aligner
from pipeline.cli import cli
from pipeline.cluster.demo import demo_config
from pipeline.cluster.sources import demo_corpora
from pipeline.evaluation import DEFAULT_METHODS
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.frontier import TRANSPORTS
from pipeline.evaluation.pairs import read_pairs
from pipeline.report.console import Reporter
from pipeline.report.methods import method_label
from pipeline.storage import embeddings_of, open_manifest, read_shard, verify
from tests.browser import browser
from tests.documents import snippets


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the demo's output folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--set", f"output.path={folder}"]
    result = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=580, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def _summary(finished: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((finished[0] / "summary.json").read_text())


def _embeddings(root: Path) -> np.ndarray[Any, Any]:
    receipts = open_manifest(str(root)).receipts
    return np.concatenate([embeddings_of(read_shard(str(root), receipt)) for receipt in receipts])


def test_the_sizes_are_those_of_the_configuration(tmp_path: Path) -> None:
    sizes = {"captions": 30, "images": 5, "pairs": 21}
    settings = [f"demo.{name}={count}" for name, count in sizes.items()]
    config = demo_config((*settings, f"output.path={tmp_path}"))
    corpora = demo_corpora(config, Reporter(quiet=True))
    assert len(corpora.captions.read_text().splitlines()) == 30
    assert pq.read_metadata(corpora.images).num_rows == 5
    assert pq.read_metadata(corpora.pairs_images).num_rows == 21
    assert len(corpora.pairs_captions.read_text().splitlines()) == 21


def test_prints_a_row_a_method_and_ends_with_json(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    for name in DEFAULT_METHODS:
        assert method_label(name) in printed
    for column in ("delta_mu", "M_Z", "M_X", "Phi", "Psi", "Omega", "A_r"):
        assert column in printed
    *_, page, summary = printed.splitlines()
    assert page == f"report: {folder / 'report' / 'index.html'}"
    assert json.loads(summary) == _summary(finished)


def test_encodes_at_the_promised_size(finished: tuple[Path, str]) -> None:
    flows = {flow["name"]: flow for flow in _summary(finished)["flows"]}
    assert flows["encoding text"]["rows"] >= 20_000
    assert flows["encoding image"]["rows"] >= 8_000
    assert flows["synthesizing"]["rows"] == flows["encoding text"]["rows"]


def test_corpus_verifies_and_holds_the_captions(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    report = verify(str(folder / "dataset"))
    assert report.problems == ()
    lines = (folder / "corpora" / "seed-0" / "captions.jsonl").read_text().splitlines()
    captions = {row["id"]: row["text"] for row in map(json.loads, lines)}
    rows = [
        row
        for path in (folder / "dataset" / "data").glob("*.parquet")
        for row in pq.read_table(path, columns=["id", "text"]).to_pylist()
    ]
    assert {row["id"]: row["text"] for row in rows} == captions


def test_calibrated_corpus_is_centred_on_the_images(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    substitutes = _embeddings(folder / "dataset").mean(axis=0, dtype=np.float64)
    images = _embeddings(folder / "embeddings" / "image").mean(axis=0, dtype=np.float64)
    assert np.linalg.norm(substitutes - images) <= 0.02


def test_alignment_mixes_more_than_realign_on_both_sides(finished: tuple[Path, str]) -> None:
    methods = _summary(finished)["evaluation"]["methods"]
    assert methods["anisoalign"]["m_z"] > methods["realign"]["m_z"] > methods["identity"]["m_z"]
    assert methods["anisoalign"]["m_x"] > methods["realign"]["m_x"] > methods["identity"]["m_x"]


def test_alignment_keeps_the_text_as_realign_does(finished: tuple[Path, str]) -> None:
    methods = _summary(finished)["evaluation"]["methods"]
    found, reference = methods["anisoalign"], methods["realign"]
    assert found["psi"] >= 0.95
    assert found["omega"] >= 0.9
    assert abs(found["phi"] - reference["phi"]) <= 0.02
    assert abs(found["delta_mu"] - reference["delta_mu"]) <= 0.005
    assert found["retrieval_r1"] >= reference["retrieval_r1"] - 0.01


def test_alignment_lies_outside_the_frontier_of_closed_forms(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "report"
    found = _summary(finished)["evaluation"]["methods"]["anisoalign"]
    curves = json.loads((folder / "curves.json").read_text())["frontier"]
    points = [
        point["metrics"] for name in ("bures-block", "bures-subspace") for point in curves[name]
    ]
    reaching = [point for point in points if min(point["m_z"], point["m_x"]) >= found["m_z"]]
    assert reaching  # the frontier goes as far, and pays more for it
    assert all(point["omega"] < found["omega"] - 0.02 for point in reaching)


def test_diagnostic_methods_behave_as_the_paper_says(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "report"
    methods = _summary(finished)["evaluation"]["methods"]
    assert methods["identity"]["m_z"] == methods["identity"]["m_x"] == 0
    assert methods["identity"]["omega"] == 1
    assert min(methods["permuted"]["m_z"], methods["permuted"]["m_x"]) > 0.97
    assert abs(methods["permuted"]["psi"]) < 0.05
    assert methods["permuted"]["retrieval_r1"] < 0.01
    assert methods["moment"]["m_z"] > methods["realign"]["m_z"]
    assert methods["moment"]["omega"] < methods["realign"]["omega"] - 0.1
    oracle = json.loads((folder / "curves.json").read_text())["frontier"]["oracle"]
    assert [point["alpha"] for point in oracle] == sorted(point["alpha"] for point in oracle)
    for metric in ("paired_cosine", "m_z", "m_x"):
        values = [point["metrics"][metric] for point in oracle]
        assert all(later > earlier - 0.03 for earlier, later in pairwise(values)), metric
        assert values[-1] > values[0]
    kept = [point["metrics"]["omega"] for point in oracle]
    assert kept == sorted(kept, reverse=True)


def test_the_tutorial_reads_the_corpus_without_ray(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = finished
    told = snippets("docs/tutorial.md", "python")
    assert len(told) == 2
    check = (
        "import sys; assert len(corpus) >= 20_000; assert embeddings.shape == (256, 128); "
        "assert 'ray' not in sys.modules"
    )
    program = "\n".join([*told, check])
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", program], cwd=folder.parents[1], env=environment, check=True
    )


def test_aligner_is_usable_without_the_run(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    aligner = load_aligner(str(folder / "aligner"))
    assert aligner.fingerprint == _summary(finished)["fit"]["fingerprint"]
    assert open_manifest(str(folder / "dataset")).aligner["fingerprint"] == aligner.fingerprint


def test_the_report_shows_every_method_and_the_frontier(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "report"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == _summary(finished)["evaluation"]
    assert tuple(metrics["methods"]) == DEFAULT_METHODS
    assert metrics["fitting"] == {"images": 8_000, "texts": 20_000, "separate": True}
    curves = json.loads((folder / "curves.json").read_text())
    assert set(curves["frontier"]) == {*TRANSPORTS, "oracle"}
    assert set(curves["training"]) == {"anisoalign-radial", "anisoalign"}
    with browser() as opened:
        opened.get((folder / "index.html").as_uri())
        assert opened.get_log("browser") == []
        cells = opened.execute_script(
            "return [...document.querySelectorAll('td[data-metric]')].map(cell =>"
            "[cell.dataset.method, cell.dataset.metric, Number(cell.dataset.value)])"
        )
        figures = opened.execute_script("return document.querySelectorAll('figure svg').length")
    assert len(cells) == sum(map(len, metrics["methods"].values()))
    for method, metric, value in cells:
        assert metrics["methods"][method][metric] == value
    assert figures == len(list((folder / "figures").glob("*.png"))) >= 11


def test_the_comparison_can_be_repeated_from_its_files(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    anisoalign = load_aligner(str(folder / "aligner"))
    files = [str(folder / "pairs.npz"), "--fitting", str(folder / "fitting.npz")]
    result = CliRunner().invoke(
        cli, ["evaluate", "geometry", *files, "--methods", "realign,bures-gromov", "--json", "-q"]
    )
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout.splitlines()[-1])
    metrics = _summary(finished)["evaluation"]
    assert (again["n"], again["fitting"]) == (metrics["n"], metrics["fitting"])
    for method, values in again["methods"].items():
        assert values == pytest.approx(metrics["methods"][method], rel=2e-3, abs=2e-3)
    pairs = read_pairs(files[0])
    found = compare({"anisoalign": anisoalign}, pairs, resamples=0).metrics["methods"]["anisoalign"]
    assert found == pytest.approx(metrics["methods"]["anisoalign"], rel=2e-3, abs=2e-3)
