"""A run loses an actor, or a node while another joins, and ends in the same rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.benchmarks.faults import rows_digest
from pipeline.cluster.synthesize import synthesize
from pipeline.storage import open_manifest, verify
from tests.cluster.conftest import Run, World
from tests.cluster.samples import execute, small_config


@pytest.fixture(scope="module")
def undisturbed(caption_run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = small_config(
        tmp_path_factory.mktemp("undisturbed"),
        text={"path": str(world.text)},
        aligner={"path": str(caption_run.output / "aligner")},
        units={"rows_per_shard": 15},
    )
    return execute(config, synthesize).path


@pytest.mark.parametrize("kind", ["actor", "node"])
def test_the_rest_of_the_cluster_finishes(
    kind: str, undisturbed: str, caption_run: Run, world: World, tmp_path
):
    aligner = str(caption_run.output / "aligner")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.trials", kind, tmp_path, world.text, aligner],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Ray prints lines of its own, after ours too.
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    trial = json.loads(said)
    assert trial["interrupted"]
    assert trial["interrupted"][0] >= 1
    assert sorted(trial["nodes"]) == ([False, True, True, True] if kind == "node" else [True])
    assert verify(trial["path"]).problems == ()
    assert rows_digest(trial["path"]) == rows_digest(undisturbed)
    units = [receipt.unit for receipt in open_manifest(trial["path"]).receipts]
    assert len(units) == 40
    assert sorted(trial["written"]) == sorted(units)
