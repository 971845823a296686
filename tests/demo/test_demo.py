"""The demo as a newcomer runs it: one command, on a Ray of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.align import load_aligner
from pipeline.storage import embeddings_of, open_manifest, read_shard, verify
from tests.readme import python_snippets


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


def test_prints_a_row_a_method_and_ends_with_json(finished: tuple[Path, str]) -> None:
    _, printed = finished
    for name in ("Text", "Centroid", "ReAlign", "AnisoAlign, init only", "AnisoAlign"):
        assert name in printed
    for column in ("delta_mu", "M_Z", "M_X", "Phi", "Psi", "Omega", "A_r"):
        assert column in printed
    assert json.loads(printed.splitlines()[-1]) == _summary(finished)


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


def test_readme_reads_the_corpus_without_ray(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    snippets = [snippet for snippet in python_snippets() if "runs/demo" in snippet]
    assert len(snippets) == 2
    check = (
        "import sys; assert len(corpus) >= 20_000; assert files; assert 'ray' not in sys.modules"
    )
    program = "\n".join([*snippets, check])
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", program], cwd=folder.parents[1], env=environment, check=True
    )


def test_aligner_is_usable_without_the_run(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    aligner = load_aligner(str(folder / "aligner"))
    assert aligner.fingerprint == _summary(finished)["fit"]["fingerprint"]
    assert open_manifest(str(folder / "dataset")).aligner["fingerprint"] == aligner.fingerprint
