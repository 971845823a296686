"""From runs that were watched to costs: what of their seconds came once, by unit and by row."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from pipeline.forecast.calibration import Cost, RowsOf, StageCost

Where = Literal["driver", "tasks", "units"]
"""Where a stage works: in the driver, in tasks, or in tasks that write a receipt for each unit."""


@dataclass(frozen=True, kw_only=True)
class UnitSeconds:
    """A unit's seconds on a worker: on the device, and reading and the like."""

    rows: int
    device: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class WatchedStage:
    """A stage as a run had it: wall-clock seconds inside it, and after it until the next.

    `driver` are processor seconds of the driver meanwhile; `units` what receipts say.
    """

    inside: float
    after: float
    driver: float
    units: tuple[UnitSeconds, ...] = ()
    steps: int = 0
    step: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """A run over so many units and rows of each kind, its stages by title."""

    sizes: Mapping[RowsOf, tuple[int, int]]
    stages: Mapping[str, WatchedStage] = field(default_factory=dict)


def exclusive_seconds(
    spans: Sequence[tuple[float, float]], start: float, stop: float
) -> list[tuple[float, float]]:
    """Return the seconds inside each span (from, to) and after it until the next, all in all.

    Where spans overlap the time is that of the one that began last; what comes before the first
    belongs to it. So all seconds from `start` to `stop` are given out, each once.
    """
    found = [[0.0, 0.0] for _ in spans]
    if not spans:
        return []
    edges = sorted({start, stop, *(edge for span in spans for edge in span)})
    last = min(range(len(spans)), key=lambda index: spans[index][0])
    for left, right in itertools.pairwise(edges):
        open_ones = [i for i, (begin, end) in enumerate(spans) if begin <= left and right <= end]
        if open_ones:
            last = max(open_ones, key=lambda index: (spans[index][0], index))
        found[last][0 if open_ones else 1] += right - left
    return [(inside, after) for inside, after in found]


def fitted_cost(sizes: Sequence[tuple[float, float]], values: Sequence[float]) -> Cost:
    """Return the cost, nowhere below 0, that comes nearest to values at sizes (units, rows)."""
    columns = np.array([[1.0, units, rows] for units, rows in sizes])
    scale = np.where(columns.max(axis=0) > 0, columns.max(axis=0), 1.0)
    found, _ = nnls(columns / scale, np.maximum(np.asarray(values, dtype=np.float64), 0.0))
    return Cost(*(float(one) for one in found / scale))


def fitted_stage(
    title: str,
    rows_of: RowsOf,
    where: Where,
    runs: Sequence[WatchedRun],
    *,
    units_a_task: int = 1,
    least_tasks: int = 1,
    cpus: int,
    gpus: int,
) -> StageCost:
    """Return what a stage costs, from runs of different sizes that had it."""
    sizes = [run.sizes[rows_of] for run in runs]
    watched = [run.stages[title] for run in runs]
    after = fitted_cost(sizes, [one.after for one in watched])
    if where == "driver":
        # The first run is apt to have slower steps; the median is of none such.
        step = float(np.median([one.step for one in watched]))
        inside = fitted_cost(sizes, [one.inside - one.steps * one.step for one in watched])
        return StageCost(title=title, rows_of=rows_of, driver=inside + after, step=step)
    scheduling = fitted_cost(sizes, [one.driver for one in watched])
    known = dataclasses.replace(
        _of_receipts(title, rows_of, watched if where == "units" else ()),
        units_a_task=units_a_task,
        least_tasks=least_tasks,
    )
    fit = _beside_gpus if gpus and known.device != Cost() else _on_cpus
    once, cpu, device = fit(known, sizes, [one.inside for one in watched], cpus, gpus)
    return dataclasses.replace(
        known,
        driver=after + Cost(fixed=once),
        cpu=cpu,
        device=device,
        scheduling=Cost(unit=scheduling.unit, row=scheduling.row),
    )


def _of_receipts(title: str, rows_of: RowsOf, watched: Sequence[WatchedStage]) -> StageCost:
    """Return what receipts say of workers; nothing where there are none."""
    # The median unit of each run: one that met something else on the machine is not the rule.
    several = [one.units for one in watched if one.units]
    rows = [float(np.median([unit.rows for unit in units])) for units in several]

    def cost(name: Literal["cpu", "device"]) -> Cost:
        if not several:
            return Cost()
        seconds = [float(np.median([getattr(unit, name) for unit in units])) for units in several]
        found = fitted_cost([(0.0, one) for one in rows], seconds)
        return Cost(unit=found.fixed, row=found.row)  # what comes once does so in each unit

    return StageCost(title=title, rows_of=rows_of, cpu=cost("cpu"), device=cost("device"))


Fitted = tuple[float, Cost, Cost]


def _on_cpus(
    known: StageCost,
    sizes: Sequence[tuple[int, int]],
    inside: Sequence[float],
    cpus: int,
    gpus: int,
) -> Fitted:
    """Return seconds that come once, and costs on CPUs and on the device.

    What receipts don't know of, such as writing, was done by CPUs too.
    """
    wide = [min(cpus, known.tasks(units)) for units, _ in sizes]
    left = [
        seconds - max(known.busy(*size, cpus, gpus).values())
        for seconds, size in zip(inside, sizes, strict=True)
    ]
    on_one = [(units / w, rows / w) for (units, rows), w in zip(sizes, wide, strict=True)]
    more = fitted_cost(on_one, left)
    return more.fixed, known.cpu + Cost(unit=more.unit, row=more.row), known.device


def _beside_gpus(
    known: StageCost,
    sizes: Sequence[tuple[int, int]],
    inside: Sequence[float],
    cpus: int,
    gpus: int,
) -> Fitted:
    """Return seconds that come once, and costs on CPUs and on the device.

    The slower of the two is never busy all the time; its cost is raised to what was seen.
    """
    busy = [known.busy(*size, cpus, gpus) for size in sizes]
    found = fitted_cost([(0.0, max(one.values())) for one in busy], inside)
    factor = max(1.0, found.row)
    if busy[-1]["gpu"] >= busy[-1]["cpu"]:
        return found.fixed, known.cpu, known.device.times(factor)
    return found.fixed, known.cpu.times(factor), known.device
