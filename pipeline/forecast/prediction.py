"""From what stages cost to what a run takes: seconds, storage, memory, shards, price."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.forecast.calibration import Calibration, StageCost
from pipeline.names import Names

_SECONDS_PER_HOUR = 3600.0
_START = "starting Ray and its workers"

_UNIT_BYTES = 24_000.0
"""Driver: a unit's plan, its row and block in Ray Data, its receipt, and both in the manifest."""
_ID_BYTES = 21.0
"""Driver: a hash of 16 bytes, and a 16th of all sorted at a time."""

_ADVICE = {
    "GPUs": "More GPUs, or encoder.precision: bf16, make it shorter; CPUs do not.",
    "CPUs (encoder)": "The encoder runs on CPUs: a machine with a GPU, or more CPUs, makes it "
    "shorter.",
    "CPUs": "Reading, statistics and writing keep the CPUs busy: more CPUs make it shorter.",
    "driver": "It is one process whatever the cluster has, and what is unchanged is remembered: "
    "nights that add to a corpus only look at what is new.",
    "training": "It does not grow with the corpus past train.max_rows: fewer align.*.steps, "
    "train.workers, or a method without training make it shorter.",
    "start": "Most of it is waiting for processes to start: more rows come at little cost.",
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be run: rows of each side, rows of their units, and the machines for it.

    `cpus` and `gpus` count over all machines; `training_rows` is the most of a side that training
    draws from, `steps` are those of each training stage by its title; `price` is for an hour of
    all machines.

    Raises:
        ValueError: if a count is below 1, or the price below 0.
    """

    texts: int
    images: int
    rows_per_unit: int
    images_per_unit: int
    cpus: int
    gpus: int = 0
    training_rows: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    price: float | None = None

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("texts", "rows_per_unit", "images_per_unit", "cpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.images < 0 or self.gpus < 0:
            raise ValueError("images and gpus must not be below 0")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ValueError(f"the price is {self.price}; it must be a number from 0 on")

    def size_of(self, stage: StageCost) -> tuple[float, float]:
        """Return the units and rows that a stage goes through."""
        text = self.texts / self.rows_per_unit, float(self.texts)
        image = self.images / self.images_per_unit, float(self.images)
        if stage.rows_of == "training":
            rows = min(self.texts, self.training_rows) + min(self.images, self.training_rows)
            return 0.0, float(rows)
        if stage.rows_of == "both":
            return text[0] + image[0], text[1] + image[1]
        return text if stage.rows_of == "text" else image


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """A stage's wall-clock seconds, and what most of them are spent on."""

    title: str
    seconds: float
    bound_by: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run is going to take; storage in bytes by folder, memory in bytes of a process.

    `worker_bytes` is None where it is not known. `shards` are those of all datasets.
    """

    stages: tuple[StageSeconds, ...]
    rows: int
    images: int
    shards: int
    storage: Mapping[str, float]
    worker_bytes: float | None
    driver_bytes: float
    cost: float | None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the whole run."""
        return math.fsum(stage.seconds for stage in self.stages)

    @property
    def bottleneck(self) -> StageSeconds:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def advice(self) -> str:
        """What makes the bottleneck shorter, in a sentence."""
        return _ADVICE[self.bottleneck.bound_by]

    def called(self, names: Names) -> Prediction:
        """Return the prediction with the sides in its stages' titles called by their names."""
        stages = [replace(stage, title=names.instead(stage.title)) for stage in self.stages]
        return replace(self, stages=tuple(stages))

    def to_mapping(self) -> dict[str, Any]:
        """Return the prediction as plain values."""
        return {
            "rows": self.rows,
            "images": self.images,
            "seconds": self.seconds,
            "stages": [asdict(stage) for stage in self.stages],
            "bottleneck": {**asdict(self.bottleneck), "advice": self.advice},
            "shards": self.shards,
            "storage_bytes": {**self.storage, "total": math.fsum(self.storage.values())},
            "memory_bytes": {"worker": self.worker_bytes, "driver": self.driver_bytes},
            "cost": self.cost,
        }


def predict(costs: Calibration, work: Workload) -> Prediction:
    """Return what a workload takes at these costs.

    Raises:
        ValueError: if GPUs are asked for that were not measured, or the other way round, or
            images are missing.
    """
    _check_devices(costs, work)
    if not work.images and any(stage.rows_of in ("image", "both") for stage in costs.stages):
        raise ValueError("the run has a target side; say of how many rows with --images")
    start = StageSeconds(title=_START, seconds=costs.start, bound_by="start")
    stages = (start, *(_predicted(stage, work) for stage in costs.stages))
    seconds = math.fsum(stage.seconds for stage in stages)
    shards = {
        "text": math.ceil(work.texts / work.rows_per_unit),
        "image": math.ceil(work.images / work.images_per_unit),
    }
    sides = {name: _side_of(name) for name in costs.storage}
    rows = {"text": work.texts, "image": work.images}
    unit_bytes = max(
        costs.text_row_bytes * min(work.rows_per_unit, work.texts),
        costs.image_row_bytes * min(work.images_per_unit, work.images),
    )
    return Prediction(
        stages=stages,
        rows=work.texts,
        images=work.images,
        shards=sum(shards[side] for name, side in sides.items() if name != "index"),
        storage={
            name: cost.of(shards[sides[name]], rows[sides[name]])
            for name, cost in costs.storage.items()
        },
        worker_bytes=costs.worker_memory.of(0, unit_bytes) if costs.worker_memory.fixed else None,
        driver_bytes=costs.driver_bytes + _driver_growth(costs, work, sum(shards.values())),
        cost=None if work.price is None else work.price * seconds / _SECONDS_PER_HOUR,
    )


def _check_devices(costs: Calibration, work: Workload) -> None:
    if work.gpus and not costs.gpus:
        raise ValueError(
            "the calibration was measured without a GPU and says nothing of one: measure on a "
            "machine with the GPU by `anisoalign plan CONFIG --save FILE`, and give its file with "
            "--calibration"
        )
    if costs.gpus and not work.gpus:
        raise ValueError(
            "the calibration was measured beside a GPU and says nothing of a run without: measure "
            "on a machine without one, and give its file with --calibration"
        )


def _predicted(stage: StageCost, work: Workload) -> StageSeconds:
    units, rows = work.size_of(stage)
    busy = stage.busy(units, rows, work.cpus, work.gpus)
    driver = stage.driver.of(units, rows)
    training = stage.step * work.steps.get(stage.title, 0)
    on_cpus = "CPUs"
    if not work.gpus and stage.device.of(units, rows) > stage.cpu.of(units, rows):
        on_cpus = "CPUs (encoder)"
    parts = {
        "driver": max(driver, busy["scheduling"]),
        on_cpus: busy["cpu"],
        "GPUs": busy.get("gpu", 0.0),
        "training": training,
    }
    return StageSeconds(
        title=stage.title,
        seconds=driver + max(busy.values()) + training,
        bound_by=max(parts, key=lambda name: parts[name]),
    )


def _side_of(folder: str) -> str:
    return "image" if folder.endswith("image") else "text"


def _driver_growth(costs: Calibration, work: Workload, shards: int) -> float:
    """Return the bytes that the driver holds of a corpus: its units, and the ids that it checks.

    There need not be a stage that checks them: statistics hash the ids of stored embeddings.
    """
    checks = costs.configuration.get("rejects.check_ids", False)
    ids = max(work.texts, work.images) if checks else 0
    return _UNIT_BYTES * shards + _ID_BYTES * ids
