"""What Prometheus reads from the agent of a node while flows run; a Ray of its own."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from pipeline.align import create_aligner
from tests.cluster.samples import cloud_values, unit_cloud, write_config, write_embeddings

PROGRAM = """
import json, sys, time, urllib.request
import ray
config_path, answer, folder, port = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder,
         _metrics_export_port=int(port))
from pipeline.cluster.lifecycle import run_flow
from pipeline.cluster.metrics import exported_metrics
from pipeline.cluster.synthesize import synthesize
from pipeline.config import load_config
from pipeline.report.console import Reporter
config, reporter = load_config(config_path), Reporter(quiet=True)
run_flow(config, "synthesize", lambda *given: synthesize(*given).to_mapping(), reporter)
with exported_metrics(reporter):
    reporter.event("drift", mean_shift=0.25, exceeded=False, note="x", fresh_rows=9)
    failed = {"stage": "embed", "unit": "u", "reason": "r", "attempts": 5, "added_attempts": 3}
    reporter.event("unit_failed", name="synthesizing", **failed)
    kept = {"units": 3, "reused": 2, "rows": 100, "reused_rows": 70, "reused_rejected": 10}
    reporter.event("planned", name="resumed", **kept)
    written = {"rows": 20, "rejected": {}, "seconds": {}}
    reporter.event("unit_written", name="resumed", unit="u", **written)
lines = []
for _ in range(60):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_anisoalign_")]
    if any("unit_failures" in line for line in lines):
        break
    time.sleep(1)
ray.shutdown()
with open(answer, "w") as file:
    json.dump(lines, file)
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_flow_is_seen_by_prometheus(clouds: Path, tmp_path: Path, short_folder: str):
    import torch

    both = [torch.from_numpy(unit_cloud(50, 12, mean, 3)) for mean in (0.4, -0.3)]
    create_aligner("centroid").fit(*both).save(str(tmp_path / "aligner"), {})
    values = unit_cloud(120, 12, -0.4, 1)
    values[7] = 0
    write_embeddings(tmp_path / "texts.parquet", "t", values)
    config = cloud_values(
        clouds,
        tmp_path / "run",
        text={"path": str(tmp_path / "texts.parquet")},
        aligner={"path": str(tmp_path / "aligner")},
    )
    path, answer = write_config(tmp_path / "c.yaml", config), tmp_path / "answer.json"
    environment = {**os.environ, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment.pop("RAY_ADDRESS", None)
    subprocess.run(
        [sys.executable, "-c", PROGRAM, path, str(answer), short_folder, str(free_port())],
        env=environment,
        check=True,
        timeout=300,
    )
    found = {}
    for line in json.loads(answer.read_text()):
        name, _, value = line.rpartition(" ")
        metric, _, tags = name.removeprefix("ray_anisoalign_").partition("{")
        kept = [
            tag.split('"')[1]
            for tag in tags.split(",")
            if tag.startswith(("flow=", "stage=", "reason=", "kind="))
        ]
        found[metric, *kept] = float(value)
    flow = "synthesizing"
    assert found["rows_total", flow] == 119
    assert found["units_total", flow] == 3
    assert found["rejected_rows_total", flow, "zero_embedding"] == 1
    assert found["reject_share", flow] == 1 / 120
    assert found["rows_per_second", flow] > 0
    for stage in ("read", "correct"):
        assert found["stage_seconds_count", flow, stage] == 3
    assert found["drift", "mean_shift"] == 0.25
    assert ("drift", "exceeded") not in found
    assert ("drift", "fresh_rows") not in found
    assert found["unit_failures_total", flow, "embed"] == 3
    # What was kept counts for the share of rejects, not for what this run wrote.
    assert found["reject_share", "resumed"] == 0.1
    assert found["rows_total", "resumed"] == 20
    # No id in a tag: Prometheus would keep a series for each for ever.
    assert not any("run_id" in line or "unit=" in line for line in json.loads(answer.read_text()))
