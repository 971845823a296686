"""Actors that ask for a GPU, on a Ray that declares one: scheduling needs no CUDA."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

from pipeline.storage import open_manifest, verify
from tests.cluster.samples import ONE_ACTOR, cloud_values, write_config

PROGRAM = """
import json, sys
import ray
quiet = {"include_dashboard": False, "log_to_driver": False}
ray.init(num_cpus=2, num_gpus=1, _temp_dir=sys.argv[3], **quiet)
from pipeline.cluster.run import run
from pipeline.cluster.session import embed_workers, ray_session
from pipeline.config import load_config
from pipeline.report.console import Reporter
config = load_config(sys.argv[1])
with ray_session(config):
    pool = embed_workers(config, 10)
    summary = run(config, Reporter(quiet=True))
ray.shutdown()
with open(sys.argv[2], "w") as file:
    json.dump({"size": pool.size, "gpus": pool.gpus, "rows": summary["rows"]}, file)
"""


def test_units_stay_whole_through_actors_with_a_gpu(
    clouds: Path, tmp_path: Path, short_folder: str
):
    values = cloud_values(clouds, tmp_path / "run", ray={**ONE_ACTOR, "encode_actors": "auto"})
    config, answer = write_config(tmp_path / "config.yaml", values), tmp_path / "answer.json"
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment.pop("RAY_ADDRESS", None)
    subprocess.run(
        [sys.executable, "-c", PROGRAM, config, str(answer), short_folder],
        env=environment,
        check=True,
        timeout=300,
    )
    assert json.loads(answer.read_text()) == {"size": 1, "gpus": 1.0, "rows": 120}
    manifest = open_manifest(str(tmp_path / "run" / "dataset"))
    assert sorted(receipt.rows for receipt in manifest.receipts) == [20, 50, 50]
    assert verify(str(tmp_path / "run" / "dataset")).problems == ()
