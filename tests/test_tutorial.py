"""The tutorial and the README as a newcomer follows them: their commands, in order, small."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage import embeddings_of, open_manifest, read_shard
from tests.cluster.samples import invoke
from tests.documents import ROOT, shell_lines, snippets, text_of

_SIZES = (
    "demo.captions=600",
    "demo.images=300",
    "demo.pairs=60",
    "align.prior.steps=5",
    "align.refiner.steps=5",
)
_RUNNING = {"demo", "run", "nightly"}
"""Commands that encode and fit, which are given small sizes."""


def follow(page: str, *, without: tuple[str, ...] = ()) -> list[str]:
    """Run a page's shell lines in the working directory, but for those that install or test.

    Returns what each `anisoalign` command printed. Lines beginning with one of `without` are left
    out.
    """
    printed = []
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if line.startswith(("make setup", "make test", *without)):
            continue
        if words == ["make", "demo"]:
            assert "anisoalign demo" in text_of("Makefile")
            words = ["anisoalign", "demo"]
        if words[0].removeprefix(".venv/bin/") != "anisoalign":
            subprocess.run(["bash", "-c", line], check=True)
            continue
        given = words[1:]
        if given[0] in _RUNNING:
            given += [word for size in _SIZES for word in ("--set", size)]
        result = invoke(*given)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        printed.append(result.output)
    return printed


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory: one with the repository's configurations alone."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    return tmp_path


def test_the_tutorial(local_ray: None, checkout: Path):
    printed = follow("docs/tutorial.md")
    versions = next(text for text in reversed(printed) if "Versions of" in text)
    assert len(re.findall(r"00000\d-", versions)) == 2  # two nights
    assert open_manifest("runs/nights/dataset").rows == 7
    assert open_manifest("runs/local/dataset").rows == 5
    for page in ("runs/demo/report", "runs/displaced", "runs/side-by-side"):
        assert (checkout / page / "index.html").is_file()
    assert (checkout / "exports/demo-llava/samples.json").is_file()
    for path, _ in re.findall(r"^\| `([\w./]+)`.*?\| (.*) \|$", text_of("docs/tutorial.md"), re.M):
        assert (checkout / "runs/demo" / path).exists(), path
    Path("read.py").write_text("\n".join(snippets("docs/tutorial.md", "python")))
    names = runpy.run_path("read.py")
    assert names["embeddings"].shape == (256, 128)


def test_the_readme_from_captions_to_a_corpus(local_ray: None, checkout: Path):
    captions = ["a red circle", "two blue squares", "a green star", "a small pink cross"]
    (checkout / "captions.txt").write_text("\n".join(captions))
    follow("README.md", without=("make demo",))
    Path("read.py").write_text("\n".join(snippets("README.md", "python")))
    corpus = runpy.run_path("read.py")["corpus"]
    assert corpus["text"][:] == captions
    (receipt,) = open_manifest("runs/local/dataset").receipts
    stored = embeddings_of(read_shard("runs/local/dataset", receipt))
    assert np.linalg.norm(stored.astype(np.float32), axis=1) == pytest.approx(np.ones(4), abs=2e-3)
