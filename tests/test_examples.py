"""The scripts of docs/examples/ run, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.align import load_aligner
from tests.align.clouds import clouds
from tests.documents import ROOT
from tests.readers.samples import write_dataset

EXAMPLES = ROOT / "docs" / "examples"


def run(script: str, *arguments: str, cwd: Path) -> str:
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_embeddings_are_aligned(tmp_path: Path):
    image, text = (rows.numpy() for rows in clouds(400, 300, seed=1))
    np.save(tmp_path / "images.npy", image)
    np.save(tmp_path / "texts.npy", 3 * text)  # of any length
    run("align_embeddings.py", "images.npy", "texts.npy", "out.npy", cwd=tmp_path)
    found = np.load(tmp_path / "out.npy")
    assert found.shape == text.shape
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(text)), abs=1e-5)
    gap = np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))
    assert np.linalg.norm(image.mean(axis=0) - found.mean(axis=0)) < 0.1 * gap
    assert load_aligner(str(tmp_path / "out.npy.aligner")).method == "bures-gromov"
    lines = (EXAMPLES / "align_embeddings.py").read_text().splitlines()
    assert len([line for line in lines if line]) <= 15


def test_a_training_loop_learns_and_goes_on_where_it_was_stopped(tmp_path: Path):
    write_dataset(str(tmp_path / "corpus"), [300, 212])
    whole = run("training_loop.py", "corpus", "--steps", "8", cwd=tmp_path)
    state = ["--steps", "4", "--state", "state.pt"]
    first = run("training_loop.py", "corpus", *state, cwd=tmp_path)
    second = run("training_loop.py", "corpus", *state, cwd=tmp_path)
    assert second == whole  # its last line: step 8, the same loss and row
    losses = [float(re.findall(r"loss ([\d.]+)", text)[0]) for text in (first, second)]
    assert losses[1] < losses[0]


def test_methods_are_compared(tmp_path: Path):
    image, text = (rows.numpy() for rows in clouds(200, 200, seed=1))
    np.savez(tmp_path / "pairs.npz", image=image, text=text)
    printed = run("compare_methods.py", "pairs.npz", "identity", "realign", cwd=tmp_path)
    heading, *rows = (line.split() for line in printed.splitlines())
    numbers = {name: map(float, values) for name, *values in rows}
    table = {name: dict(zip(heading[1:], found, strict=True)) for name, found in numbers.items()}
    assert list(table) == ["identity", "realign"]
    assert table["realign"]["delta_mu"] < 0.5 * table["identity"]["delta_mu"]
    assert table["identity"]["phi"] == 1
