"""A calibration of round numbers."""

from __future__ import annotations

from typing import Any

from pipeline.forecast.calibration import Calibration, Cost, StageCost
from pipeline.forecast.prediction import Workload

PLANNING = StageCost(title="planning text", rows_of="text", driver=Cost(0.5, 0.001, 1e-7))
CHECKING = StageCost(title="checking ids", rows_of="text", cpu=Cost(unit=0.01, row=2e-6))
ENCODING = StageCost(
    title="encoding text",
    rows_of="text",
    driver=Cost(fixed=0.2, unit=1e-4),
    cpu=Cost(unit=0.01, row=1e-5),
    device=Cost(unit=0.02, row=1e-3),
    scheduling=Cost(unit=0.004),
)
IMAGES = StageCost(title="encoding image", rows_of="image", device=Cost(row=0.02))
MOMENTS = StageCost(
    title="moments of text", rows_of="text", cpu=Cost(unit=0.01, row=2e-5), units_a_task=8
)
TRAINING = StageCost(
    title="training prior", rows_of="training", driver=Cost(fixed=0.1, row=1e-6), step=0.01
)


def calibration(**changed: Any) -> Calibration:
    """Return a calibration, of two CPUs without a GPU where nothing else is said."""
    given: dict[str, Any] = {
        "machine": {"processor": "a"},
        "configuration": {
            "encoder.model": "demo",
            "method": "anisoalign",
            "rejects.check_ids": True,
        },
        "disturbed": 0.0,
        "dimension": 512,
        "cpus": 2,
        "gpus": 0,
        "texts": 1_000_000,
        "images": 10_000,
        "start": 8.0,
        "stages": (PLANNING, CHECKING, ENCODING, IMAGES, MOMENTS, TRAINING),
        "storage": {
            "embeddings/text": Cost(1000.0, 2000.0, 1100.0),
            "embeddings/image": Cost(1000.0, 2000.0, 1050.0),
            "dataset": Cost(1000.0, 2000.0, 1100.0),
            "index": Cost(row=24.0),
        },
        "worker_memory": Cost(fixed=1e9, row=3.0),
        "text_row_bytes": 2100.0,
        "image_row_bytes": 100_000.0,
        "driver_bytes": 5e8,
    }
    return Calibration(**given | changed)


def workload(**changed: Any) -> Workload:
    """Return a workload of a million captions on two CPUs."""
    given: dict[str, Any] = {
        "texts": 1_000_000,
        "images": 10_000,
        "rows_per_unit": 32_768,
        "images_per_unit": 2_048,
        "cpus": 2,
        "training_rows": 262_144,
        "steps": {"training prior": 500},
    }
    return Workload(**given | changed)
