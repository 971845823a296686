"""What the README says, works."""

from __future__ import annotations

import itertools
import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.config import load_config
from tests.readme import ROOT, commands, python_snippets

ANISOALIGN = [command for command in commands() if command[0].endswith("anisoalign")]


def test_alignment_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (snippet,) = [text for text in python_snippets() if "AnisoAlign(" in text]
    script = tmp_path / "example.py"
    script.write_text(snippet)
    names = runpy.run_path(str(script))
    assert names["substitutes"].shape == names["text"].shape
    assert (tmp_path / "runs" / "my-aligner" / "config.json").exists()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [command[1] for command in commands() if command[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("command", ANISOALIGN, ids=" ".join)
def test_commands_and_options_exist(command: list[str]) -> None:
    path, node = [], cli
    for word in command[1:]:
        if not hasattr(node, "commands") or word not in node.commands:
            break
        path.append(word)
        node = node.commands[word]
    assert path, command
    assert CliRunner().invoke(cli, [*path, "--help"]).exit_code == 0
    known = {option for parameter in node.params for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "command", [c for c in ANISOALIGN if any(w.startswith("configs/") for w in c)], ids=" ".join
)
def test_configurations_validate_with_their_settings(command: list[str]) -> None:
    (config,) = [word for word in command if word.startswith("configs/")]
    settings = [after for word, after in itertools.pairwise(command) if word == "--set"]
    load_config(ROOT / config, settings)


def test_jobs_exist() -> None:
    jobs = [word for command in commands() for word in command if word.startswith("jobs/")]
    assert jobs
    assert all((ROOT / job).is_file() for job in jobs)
