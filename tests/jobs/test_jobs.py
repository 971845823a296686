"""Jobs: thin files over the command line, and one of them on a real cluster."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pipeline.storage import open_manifest, verify
from tests.cluster.samples import cloud_values, write_config

REPOSITORY = Path(__file__).parent.parent.parent
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_job_explains_itself(job: Path):
    done = subprocess.run(
        [sys.executable, str(job), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("name", ["encode", "fit", "synthesize"])
def test_jobs_fail_as_the_command_line_does(name: str, tmp_path: Path):
    config = write_config(tmp_path / "c.yaml", {"sead": 1})
    done = subprocess.run(
        [sys.executable, f"jobs/{name}.py", config],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {config}: unknown key sead; did you mean seed?\n"


def test_the_evaluation_is_a_job_too(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "jobs/evaluate.py", "geometry", str(tmp_path / "lost.npz"), "-q"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: cannot read {tmp_path}/lost.npz: No such file or directory\n"


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a Ray head on loopback; yields its job server's address and the environment for it."""
    # Not below tmp_path: the path of a Unix socket may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        "HOME": str(tmp_path),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    options = {
        "port": gcs,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "metrics-export-port": metrics,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 2,
        "temp-dir": folder,
    }
    command = [f"--{name}={value}" for name, value in options.items()]
    with (tmp_path / "head.log").open("wb") as log:
        # A session of its own, so that everything it starts can be ended by its id.
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            wait_for(dashboard, process, tmp_path / "head.log")
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text())


def test_a_submitted_job(cloud_run, clouds: Path, tmp_path: Path, head: tuple[str, dict[str, str]]):
    """`ray job submit -- python jobs/nightly.py` on the checkout's jobs and library."""
    address, environment = head
    work = tmp_path / "work"
    for name in ("jobs", "pipeline"):
        shutil.copytree(
            REPOSITORY / name, work / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    values = cloud_values(
        clouds,
        tmp_path / "run",
        aligner={"path": str(cloud_run[0] / "aligner")},
        units={"rows_per_shard": 60},
    )
    write_config(work / "run.yaml", values)
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(work)]
    job = ["--", "python", "jobs/nightly.py", "run.yaml", "--json", "-q"]
    done = subprocess.run(
        [*submit, *job], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"seed"')]
    summary = json.loads(line)
    assert (summary["status"], summary["rows"], summary["added"]) == ("done", 120, 2)
    root = str(tmp_path / "run/dataset")
    assert verify(root).problems == ()
    assert open_manifest(root).version == summary["version"]
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary

    # A job that fails says why, and the client's exit code says that it did.
    write_config(work / "run.yaml", {**values, "sead": 1})
    failed = subprocess.run(
        [*submit, *job], capture_output=True, text=True, env=environment, timeout=240
    )
    assert failed.returncode != 0
    assert "error: run.yaml: unknown key sead; did you mean seed?" in failed.stdout
    assert "Traceback" not in failed.stdout
