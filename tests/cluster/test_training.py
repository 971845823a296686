"""Training under Ray Train gives what training in the driver gives."""

from __future__ import annotations

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
