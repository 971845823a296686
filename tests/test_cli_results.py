"""The command that looks at results: verify."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.storage import open_manifest
from tests.cluster.samples import error_line, invoke
from tests.storage.test_history import three_versions


@pytest.fixture
def dataset(cloud_run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cloud_run[0] / "dataset", tmp_path / "dataset"))


def test_a_sound_dataset_verifies(dataset: Path):
    result = invoke("verify", str(dataset), "-q", "--json")
    assert result.exit_code == 0
    version = open_manifest(str(dataset)).version
    said, found = result.stdout.splitlines()
    assert said == f"{dataset}: version {version}, 3 shards, 120 rows: OK"
    assert json.loads(found) == {"version": version, "shards": 3, "rows": 120, "problems": []}


def test_an_older_version_verifies(tmp_path: Path):
    root = tmp_path / "out"
    made, receipts = three_versions(str(root), tmp_path / "in")
    (root / receipts[0].path).unlink()
    assert invoke("verify", str(root), "-q").exit_code == 0
    result = invoke("verify", str(root), "--version", made[0].version, "-q", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["version"] == made[0].version
    assert found["problems"] == [{"path": receipts[0].path, "what": "missing"}]
    unknown = invoke("verify", str(root), "--version", "latest", "-q")
    assert unknown.exit_code == 1
    assert "not the name of a version" in error_line(unknown)


@pytest.mark.parametrize("damage", ["flip", "delete", "receipt"])
def test_a_damaged_dataset_is_told_by_shard(dataset: Path, damage: str):
    receipt = open_manifest(str(dataset)).receipts[1]
    shard = dataset / receipt.path
    named = receipt.path
    if damage == "flip":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "delete":
        shard.unlink()
    else:
        named = f"receipts/{shard.stem}.json"
        stored = json.loads((dataset / named).read_text())
        (dataset / named).write_text(json.dumps({**stored, "rows": stored["rows"] + 1}))
    result = invoke("verify", str(dataset), "-q", "--json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout.splitlines()[-1])["problems"]
    assert {problem["path"] for problem in problems} == {named}
    *told, last = result.stderr.splitlines()
    assert told == [f"{problem['path']}: {problem['what']}" for problem in problems]
    assert shard.stem in told[0]
    assert last == f"error: {dataset}: {len(problems)} problems found"


def test_nothing_to_verify(tmp_path: Path):
    result = invoke("verify", str(tmp_path), "-q")
    assert result.exit_code == 1
    assert "there is no dataset in" in error_line(result)
