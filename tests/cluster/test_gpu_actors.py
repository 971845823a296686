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
    on_cpu = embed_workers(load_config(sys.argv[1], ["encoder.device=cpu"]), 10)
    on_gpu = embed_workers(load_config(sys.argv[1], ["encoder.device=cuda"]), 10)
    summary = run(config, Reporter(quiet=True))
ray.shutdown()
with open(sys.argv[2], "w") as file:
    found = {"size": pool.size, "gpus": pool.gpus, "rows": summary["rows"]}
    devices = {"cpu": [on_cpu.size, on_cpu.gpus], "cuda": [on_gpu.size, on_gpu.gpus]}
    json.dump(found | devices, file)
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
    said = json.loads(answer.read_text())
    assert (said["size"], said["gpus"], said["rows"]) == (1, 1.0, 120)
    # An encoder on the CPU leaves the GPU alone; one that needs a GPU has it.
    assert (said["cpu"], said["cuda"]) == ([2, 0.0], [1, 1.0])
    manifest = open_manifest(str(tmp_path / "run" / "dataset"))
    assert sorted(receipt.rows for receipt in manifest.receipts) == [20, 50, 50]
    assert verify(str(tmp_path / "run" / "dataset")).problems == ()
