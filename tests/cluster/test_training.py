"""Training under Ray Train gives what training in the driver gives."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from pipeline.align import load_aligner
from pipeline.cluster.fit import fit
from tests.cluster.samples import TEXTS, WIDTH, cloud_config, execute, unit_cloud

TOLERANCE = 2e-4
"""Relative; gradients are averaged over float32 slices instead of summed over one batch."""


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_drivers_loss_curve(cloud_run, clouds: Path, tmp_path: Path, workers: int):
    train = {"workers": workers, "checkpoint_every": 4, "cpus_per_worker": 0.5}
    report = execute(cloud_config(clouds, tmp_path / "run", train=train), fit)
    alone, together = load_aligner(str(cloud_run[0] / "aligner")), load_aligner(report.path)
    for stage, steps in (("prior", 8), ("refiner", 6)):
        assert len(together.history[stage]) == steps
        assert together.history[stage] == pytest.approx(alone.history[stage], rel=TOLERANCE)
    text = torch.from_numpy(unit_cloud(TEXTS, WIDTH, -0.4, 1))
    torch.testing.assert_close(together.transform(text), alone.transform(text), atol=1e-3, rtol=0)


def _train_workers() -> list[int]:
    """Return the training workers of the Ray that this process started (raylet's children)."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if not (process / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                continue
            raylet = (process / "stat").read_text().rpartition(")")[2].split()[1]
            owner = Path(f"/proc/{raylet}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        if int(owner) == os.getpid():
            found.append(int(process.name))
    return found


def _kill_after_a_checkpoint(folder: Path, killed: list[int], stop: threading.Event) -> None:
    while not stop.is_set():
        workers = _train_workers()
        if workers and any(folder.rglob("checkpoint_*/config.json")):
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])
            return
        stop.wait(0.05)


def test_training_outlives_a_killed_worker(local_ray: None, clouds: Path, tmp_path: Path):
    # Long enough to be hit between two checkpoints: some seconds of steps.
    prior = {"steps": 1200, "width": 128, "batch_size": 128}
    align = {"align": {"prior": prior}}
    unbroken = execute(cloud_config(clouds, tmp_path / "alone", **align), fit)
    train = {"workers": 1, "checkpoint_every": 100, "cpus_per_worker": 0.5, "max_failures": 1}
    killed: list[int] = []
    stop = threading.Event()
    hunter = threading.Thread(
        target=_kill_after_a_checkpoint, args=(tmp_path / "run", killed, stop), daemon=True
    )
    hunter.start()
    report = execute(cloud_config(clouds, tmp_path / "run", train=train, **align), fit)
    stop.set()
    hunter.join()
    assert len(killed) == 1, "no worker was killed: training ended too soon for this test"
    alone, resumed = load_aligner(unbroken.path), load_aligner(report.path)
    for stage, curve in alone.history.items():
        assert len(resumed.history[stage]) == len(curve)
        assert resumed.history[stage] == pytest.approx(curve, rel=5e-2)
    assert resumed.history["prior"][:100] == pytest.approx(alone.history["prior"][:100], rel=1e-3)
