"""`anisoalign export`: options, what it prints, how it fails; the job is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.export import FORMATS
from pipeline.storage import open_manifest
from tests.cluster.samples import error_line, invoke
from tests.documents import ROOT
from tests.export.samples import captions, check_sums, contents, write_substitutes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli-export")
    write_substitutes(str(folder / "dataset"), folder / "source")
    return str(folder / "dataset")


def last_json(*arguments: str) -> Any:
    result = invoke("export", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_by_the_command_line(name: str, dataset: str, tmp_path: Path):
    target = str(tmp_path / "out")
    version = open_manifest(dataset).version
    found = last_json(dataset, target, "--format", name)
    assert found.pop("seconds") > 0
    assert found.pop("bytes") > 30 * 16
    wanted = {"target": target, "format": name, "version": version, "parts": 3, "rows": 30}
    assert found == {**wanted, "reused": 0}
    check_sums(tmp_path / "out")
    result = invoke("export", dataset, target, "--format", name)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{target}: version {version} as {name}, 30 rows in 3 parts (")
    assert "all there already" in result.stdout


def test_workers(dataset: str, tmp_path: Path):
    last_json(dataset, str(tmp_path / "one"), "--format", "mds")
    last_json(dataset, str(tmp_path / "two"), "--format", "mds", "--workers", "2")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_conversations_come_from_the_configuration(dataset: str, tmp_path: Path):
    config = tmp_path / "run.yaml"
    template = {"human": "Was ist das?", "gpt": "{text}"}
    sections = {"conversations": {"templates": [template]}, "seed": 4}
    config.write_text(yaml.safe_dump({**sections, "align": {"rank": 4}}))
    last_json(dataset, str(tmp_path / "a"), "--format", "llava", "--config", str(config))
    samples = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert {one["conversations"][0]["value"] for one in samples} == {"<image>\nWas ist das?"}
    assert json.loads((tmp_path / "a" / "export.json").read_text())["options"]["seed"] == 4
    setting = f"conversations.templates=[{json.dumps(template)}]"
    arguments = ["--format", "llava", "--set", setting, "--set", "seed=4"]
    last_json(dataset, str(tmp_path / "b"), *arguments)
    assert contents(tmp_path / "a")["samples.json"] == contents(tmp_path / "b")["samples.json"]


def test_the_card(dataset: str, tmp_path: Path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"methods": {"anisoalign": {"m_z": 1.5}}, "n": 10}))
    arguments = ["--format", "hf", "--name", "Our cats", "--license", "mit", "--metrics"]
    last_json(dataset, str(tmp_path / "out"), *arguments, str(metrics))
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'pretty_name: "Our cats"\nlicense: "mit"\n' in text
    assert "| anisoalign | 1.5 |" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        ("{", "it is not JSON"),
        ("[]", "it has no methods"),
        ('{"methods": 1}', "these are no metrics"),
    ],
)
def test_metrics_that_are_none(dataset: str, tmp_path: Path, content: str | None, said: str):
    metrics = tmp_path / "metrics.json"
    if content is not None:
        metrics.write_text(content)
    target = str(tmp_path / "out")
    result = invoke("export", dataset, target, "--format", "hf", "--metrics", str(metrics))
    assert result.exit_code == 1
    line = error_line(result)
    assert line.startswith(f"{metrics}: ")
    assert said in line
    assert not Path(target).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing option '--format'"),
        (["--format", "lmdb"], "'lmdb' is not one of"),
        (["--format", "llava", "--set", "align.rank=4"], "align.rank says nothing here"),
        (["--format", "hf", "--set", "conversations.column=c"], "says nothing with --format hf"),
        (["--format", "hf", "--workers", "0"], "--workers"),
    ],
)
def test_wrong_usage_exits_2(dataset: str, tmp_path: Path, arguments: list[str], said: str):
    result = invoke("export", dataset, str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_wrong_configuration_exits_2(dataset: str, tmp_path: Path):
    target = str(tmp_path / "out")
    result = invoke("export", dataset, target, "--format", "mds", "--set", "conversations.colum=c")
    assert result.exit_code == 2
    assert "did you mean conversations.column?" in error_line(result)
    lost = str(tmp_path / "lost.yaml")
    assert invoke("export", dataset, target, "--format", "mds", "--config", lost).exit_code == 2


def test_failures_exit_1_in_one_line(dataset: str, tmp_path: Path):
    target = str(tmp_path / "out")
    result = invoke("export", str(tmp_path / "lost"), target, "--format", "hf")
    assert result.exit_code == 1
    assert error_line(result).startswith("there is no dataset in ")
    result = invoke("export", dataset, target, "--format", "hf", "--version", "1")
    assert result.exit_code == 1
    assert "is not the name of a version" in error_line(result)


def test_no_credential_is_kept(tmp_path: Path, dataset: str):
    target = f"memory://user:secret@host/{tmp_path.name}"
    result = invoke("export", dataset, target, "--format", "npy", "--json")
    assert result.exit_code == 0, result.output
    assert "secret" not in result.output
    assert last_json(dataset, target, "--format", "npy")["reused"] == 3


def test_the_job_is_the_command(tmp_path: Path, dataset: str):
    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "jobs/export.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)

    done = job(dataset, str(tmp_path / "out"), "--format", "webdataset", "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 30
    check_sums(tmp_path / "out")
    lost = job(str(tmp_path / "lost"), str(tmp_path / "other"), "--format", "hf")
    assert lost.returncode == 1
    assert lost.stderr.startswith("error: there is no dataset in ")


def test_an_export_loads_neither_ray_nor_torch(tmp_path: Path, dataset: str):
    program = (
        "import sys\n"
        "from pipeline.cli import cli\n"
        f"cli(['export', {dataset!r}, {str(tmp_path / 'out')!r}, '--format', 'llava', '-q'], "
        "standalone_mode=False)\n"
        "assert not {'ray', 'torch'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_killed_process_is_resumed(tmp_path: Path):
    """SIGKILL, not an exception: the target holds whole files and no finished export."""
    columns = captions(600)
    columns["id"] = [f"id-{row}" for row in range(600)]
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", columns, rows_per_shard=10)
    target = tmp_path / "out"
    command = [sys.executable, "-m", "pipeline.cli", "export", root, str(target)]
    with subprocess.Popen([*command, "--format", "llava", "-q"], cwd=ROOT) as process:
        while process.poll() is None and not (target / "parts" / "00003.json").exists():
            pass
        process.kill()
    assert not (target / "checksums.sha256").exists()
    found = last_json(root, str(target), "--format", "llava")
    assert (found["parts"], found["rows"]) == (60, 600)
    assert 4 <= found["reused"] < 60
    last_json(root, str(tmp_path / "whole"), "--format", "llava")
    assert contents(target) == contents(tmp_path / "whole")
    check_sums(target)
