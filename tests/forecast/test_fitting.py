"""Costs are found again in runs that had them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecast.calibration import Cost, StageCost
from pipeline.forecast.fitting import (
    UnitSeconds,
    WatchedRun,
    WatchedStage,
    exclusive_seconds,
    fitted_cost,
    fitted_stage,
)

SIZES = ((16, 16_000), (32, 32_000), (16, 48_000))
POSITIVE = st.floats(0, 100)


@given(POSITIVE, POSITIVE, POSITIVE)
def test_a_cost_is_found_again(fixed: float, unit: float, row: float):
    cost = Cost(fixed, unit, row / 1000)
    found = fitted_cost(SIZES, [cost.of(*size) for size in SIZES])
    for size in (*SIZES, (1000, 10**7)):
        assert found.of(*size) == pytest.approx(cost.of(*size), rel=1e-6, abs=1e-6)


def test_no_cost_is_below_zero():
    found = fitted_cost(SIZES, [5.0, 3.0, 1.0])  # as noise would have it
    assert min(found.fixed, found.unit, found.row) >= 0
    assert fitted_cost(SIZES, [-1.0, -1.0, -1.0]) == Cost()


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)).map(sorted), min_size=1, max_size=8))
def test_every_second_is_given_out_once(spans: list[tuple[float, float]]):
    found = exclusive_seconds([(begin, end) for begin, end in spans], 0.0, 12.0)
    assert sum(itertools.chain(*found)) == pytest.approx(12.0)
    assert all(inside >= 0 and after >= 0 for inside, after in found)


def test_seconds_between_stages_belong_to_the_one_before():
    found = exclusive_seconds([(1.0, 3.0), (2.0, 2.5), (5.0, 6.0)], 0.0, 7.0)
    assert found == [(1.5, 1.0 + 2.0), (0.5, 0.0), (1.0, 1.0)]
    assert exclusive_seconds([], 0.0, 1.0) == []


def watched(cost: StageCost, cpus: int, gpus: int, *, receipts: bool) -> list[WatchedRun]:
    """Return runs as a stage of this cost has them; `receipts` tell half of what CPUs did."""
    runs = []
    for units, rows in SIZES:
        each = rows / units
        seconds = UnitSeconds(
            rows=round(each), device=cost.device.of(1, each), cpu=cost.cpu.of(1, each) / 2
        )
        stage = WatchedStage(
            inside=3.0 + max(cost.busy(units, rows, cpus, gpus).values()),
            after=cost.driver.of(units, rows),
            driver=cost.scheduling.of(units, rows),
            units=(seconds,) * units if receipts else (),
        )
        runs.append(WatchedRun(sizes={"text": (units, rows)}, stages={cost.title: stage}))
    return runs


def test_a_stage_on_cpus_is_found_again():
    cost = StageCost(
        title="synthesizing",
        rows_of="text",
        driver=Cost(0.5, 0.01, 1e-6),
        cpu=Cost(unit=0.1, row=4e-5),
        device=Cost(unit=0.01, row=2e-5),
        scheduling=Cost(unit=0.002, row=1e-8),
    )
    runs = watched(cost, 2, 0, receipts=True)
    found = fitted_stage("synthesizing", "text", "units", runs, cpus=2, gpus=0)
    assert found.device.row == pytest.approx(cost.device.row)
    for size in ((100, 10**6), (10**5, 10**9)):
        assert found.driver.of(*size) == pytest.approx(3.0 + cost.driver.of(*size), rel=1e-6)
        for cpus in (2, 64):
            expected = cost.busy(*size, cpus, 0)
            assert found.busy(*size, cpus, 0) == pytest.approx(expected, rel=1e-6)


def test_tasks_of_several_units_are_found_again():
    cost = StageCost(
        title="moments of text", rows_of="text", cpu=Cost(unit=0.2, row=3e-5), units_a_task=8
    )
    runs = watched(cost, 2, 0, receipts=False)
    found = fitted_stage("moments of text", "text", "tasks", runs, units_a_task=8, cpus=2, gpus=0)
    for size, cpus in (((1000, 10**7), 8), ((16, 10**6), 64)):
        assert found.busy(*size, cpus, 0) == pytest.approx(cost.busy(*size, cpus, 0), rel=1e-6)
    # On more CPUs than there were tasks most had nothing to do: a row costs the same.
    runs = watched(cost, 8, 0, receipts=False)
    found = fitted_stage("moments of text", "text", "tasks", runs, units_a_task=8, cpus=8, gpus=0)
    assert found.cpu.row == pytest.approx(cost.cpu.row)


def test_a_stage_beside_a_gpu_takes_as_long_as_was_seen():
    cost = StageCost(
        title="encoding text", rows_of="text", cpu=Cost(row=1e-4), device=Cost(row=1e-3)
    )
    runs = watched(cost, 16, 1, receipts=True)
    slow = [
        WatchedRun(
            sizes=run.sizes,
            stages={
                title: WatchedStage(
                    inside=1.5 * (stage.inside - 3.0) + 3.0, after=0, driver=0, units=stage.units
                )
                for title, stage in run.stages.items()
            },
        )
        for run in runs
    ]
    found = fitted_stage("encoding text", "text", "units", slow, cpus=16, gpus=1)
    assert found.driver.fixed == pytest.approx(3.0)
    assert found.device.row == pytest.approx(1.5e-3)  # the device is idle a third of the time
    assert found.cpu.row == pytest.approx(0.5e-4)


def test_training_is_by_steps():
    runs = []
    for units, rows in SIZES:
        stage = WatchedStage(
            inside=2.0 + 1e-5 * rows + 40 * 0.02, after=0.0, driver=0.0, steps=40, step=0.02
        )
        sizes = {"training": (0, rows), "text": (units, rows)}
        runs.append(WatchedRun(sizes=sizes, stages={"training prior": stage}))
    found = fitted_stage("training prior", "training", "driver", runs, cpus=2, gpus=0)
    assert found.step == 0.02
    assert found.driver.of(0, 262_144) == pytest.approx(2.0 + 1e-5 * 262_144)
    assert found.busy(0, 262_144, 2, 0) == {"scheduling": 0.0, "cpu": 0.0}
