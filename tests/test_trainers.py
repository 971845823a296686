"""What docs/trainers.md says in Python, runs: on a small dataset and its exports, in order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.samples import invoke
from tests.documents import commands, snippets
from tests.readers.samples import ids_of, write_dataset

PAGE = "docs/trainers.md"
ROWS = 4096
EXPORTED = ("hf", "webdataset", "llava", "mds")


def test_the_export_is_told_of():
    assert any(words[1] == "export" for words in commands(PAGE))


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.syspath_prepend(tmp_path / "exports/mine-llava")
    write_dataset("runs/mine/dataset", [ROWS, ROWS])
    for name in EXPORTED:
        places = ["runs/mine/dataset", f"exports/mine-{name}"]
        given = [] if name == "hf" else ["--set", "conversations.invalid=template"]
        result = invoke("export", *places, "--format", name, *given)
        assert result.exit_code == 0, result.output
    # Places and ids of the reader's own, and what LLaVA's trainer has at hand.
    ids = ids_of(0, ROWS)
    own = {
        "s3://bucket/run/dataset": "runs/mine/dataset",
        "/data/run/dataset": "runs/mine/dataset",
        "caption-17": ids[17],
        "caption-4": ids[4],
    }
    names = {"sample": {"image": "embeddings/00001.npy#17"}, "data_dict": {}}
    ran = snippets(PAGE, "python")
    assert len(ran) == 8
    for snippet in ran:
        for placeholder, instead in own.items():
            snippet = snippet.replace(placeholder, instead)
        exec(compile(snippet, PAGE, "exec"), names)
    sys.modules.pop("substitute_dataset", None)
    assert len(names["files"]) == 2
    assert names["data_dict"]["image"].shape == (8,)
    assert len(names["rows"]) == 2 * ROWS
