"""What a forecast must hold to, whatever was measured."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecast.calibration import Cost, StageCost
from pipeline.forecast.prediction import Prediction, predict
from pipeline.names import Names
from tests.forecast.samples import MOMENTS, calibration, workload

LARGE = 10**10


def seconds_of(found: Prediction) -> dict[str, float]:
    return {stage.title: stage.seconds for stage in found.stages}


def test_the_seconds_of_a_stage_by_hand():
    found = seconds_of(predict(calibration(), workload(texts=3_276_800)))
    assert found["planning text"] == pytest.approx(0.5 + 100 * 0.001 + 3_276_800 * 1e-7)
    on_cpus = 100 * (0.01 + 0.02) + 3_276_800 * (1e-5 + 1e-3)
    assert found["encoding text"] == pytest.approx(0.2 + 100 * 1e-4 + on_cpus / 2)
    assert found["encoding image"] == pytest.approx(10_000 * 0.02 / 2)
    drawn = 262_144 + 10_000
    assert found["training prior"] == pytest.approx(0.1 + drawn * 1e-6 + 500 * 0.01)
    assert found["starting Ray and its workers"] == 8.0


def test_linear_in_rows_past_what_comes_once():
    """Ten times the rows take ten times as long, but for starts, images and training."""
    rows = 32_768 * 1000
    first, second, third = (
        seconds_of(predict(calibration(), workload(texts=rows * times))) for times in (1, 2, 3)
    )
    for title in first:
        assert third[title] - second[title] == pytest.approx(second[title] - first[title])
    for title in ("starting Ray and its workers", "encoding image", "training prior"):
        assert second[title] == first[title]


@given(st.integers(1, 10**7), st.integers(1, 512), st.integers(1, 512))
def test_more_cpus_are_never_slower_and_more_rows_never_quicker(texts: int, few: int, more: int):
    costs = calibration()
    slow, quick = (predict(costs, workload(texts=texts, cpus=cpus)) for cpus in (few, few + more))
    assert quick.seconds <= slow.seconds * (1 + 1e-12)
    larger = predict(costs, workload(texts=texts + more, cpus=few))
    assert larger.seconds >= slow.seconds * (1 - 1e-12)


def test_gpus_halve_what_waits_for_the_device_and_nothing_else():
    costs = calibration(gpus=1, cpus=16)
    one, two = (
        seconds_of(predict(costs, workload(texts=LARGE, images=10**7, cpus=16, gpus=gpus)))
        for gpus in (1, 2)
    )
    units = LARGE / 32_768
    around = 0.2 + units * 1e-4
    assert two["encoding text"] - around == pytest.approx((one["encoding text"] - around) / 2)
    assert two["encoding image"] == pytest.approx(one["encoding image"] / 2)
    for title in one.keys() - {"encoding text", "encoding image"}:
        assert two[title] == one[title]


def test_beside_gpus_the_slower_of_device_and_cpus_counts():
    costs = calibration(gpus=1, cpus=1)
    rows = 32_768 * 1000
    many_gpus = predict(costs, workload(texts=rows, cpus=1, gpus=1000))
    (encoding,) = (stage for stage in many_gpus.stages if stage.title == "encoding text")
    assert encoding.bound_by == "CPUs"
    assert encoding.seconds == pytest.approx(0.2 + 0.1 + 1000 * 0.01 + rows * 1e-5)
    many_cpus = predict(costs, workload(texts=rows, cpus=1000, gpus=1))
    (encoding,) = (stage for stage in many_cpus.stages if stage.title == "encoding text")
    assert encoding.bound_by == "GPUs"
    assert encoding.seconds == pytest.approx(0.2 + 0.1 + 1000 * 0.02 + rows * 1e-3)


def test_the_driver_schedules_no_faster_on_more_machines():
    rows = 32_768 * 10_000
    found = predict(calibration(), workload(texts=rows, cpus=10**6))
    (encoding,) = (stage for stage in found.stages if stage.title == "encoding text")
    assert encoding.bound_by == "driver"
    assert encoding.seconds == pytest.approx(0.2 + 10_000 * (1e-4 + 0.004))


def test_few_units_keep_few_workers_busy():
    costs = calibration()
    eight = seconds_of(predict(costs, workload(texts=32_768 * 8, cpus=64)))
    alone = seconds_of(predict(costs, workload(texts=32_768 * 8, cpus=1)))
    assert eight["moments of text"] == alone["moments of text"]  # one task measures all eight
    shared = calibration(stages=(dataclasses.replace(MOMENTS, least_tasks=32),))
    seconds = predict(shared, workload(texts=32_768 * 8, cpus=64)).stages[1].seconds
    assert seconds == pytest.approx(alone["moments of text"] / 8)  # smaller tasks, one a unit
    busy = alone["encoding text"] - 0.2 - 8 * 1e-4
    assert eight["encoding text"] == pytest.approx(0.2 + 8 * 1e-4 + busy / 8)


def test_ten_thousand_million_rows():
    found = predict(calibration(), workload(texts=LARGE, images=LARGE, cpus=10_000, price=40.0))
    assert all(math.isfinite(stage.seconds) and stage.seconds >= 0 for stage in found.stages)
    shards = math.ceil(LARGE / 32_768)
    images = math.ceil(LARGE / 2_048)
    assert found.shards == 2 * shards + images
    assert found.storage["dataset"] == 1000 + 2000 * shards + 1100 * LARGE
    assert found.storage["embeddings/image"] == 1000 + 2000 * images + 1050 * LARGE
    assert found.driver_bytes > 16 * LARGE  # the ids that the driver compares
    said = found.to_mapping()
    assert said["storage_bytes"]["total"] == pytest.approx(sum(found.storage.values()))
    assert said["seconds"] == pytest.approx(sum(seconds_of(found).values()))


def test_the_driver_holds_ids_where_they_are_checked_only():
    # Statistics hash the ids of stored embeddings, so that no stage of its own checks them.
    stages = tuple(one for one in calibration().stages if one.title != "checking ids")
    costs = calibration(stages=stages)
    without = calibration(stages=stages, configuration={"rejects.check_ids": False})
    rows = 10**9
    with_ids, no_ids = (predict(one, workload(texts=rows)).driver_bytes for one in (costs, without))
    assert 16 * rows <= with_ids - no_ids <= 32 * rows
    assert no_ids < 5e8 + 1e5 * (rows / 32_768 + 5)


def test_a_worker_holds_a_unit():
    costs = calibration()
    found = predict(costs, workload(images=2_048 * 10))
    assert found.worker_bytes == 1e9 + 3.0 * 2_048 * 100_000  # a unit of pictures is the larger
    found = predict(costs, workload(images=100))
    assert found.worker_bytes == 1e9 + 3.0 * 32_768 * 2_100
    assert predict(calibration(worker_memory=Cost()), workload()).worker_bytes is None


def test_the_price_is_of_hours():
    found = predict(calibration(), workload(price=3.5))
    assert found.cost == pytest.approx(3.5 * found.seconds / 3600)
    assert predict(calibration(), workload()).cost is None
    assert predict(calibration(), workload(price=0.0)).cost == 0.0


@pytest.mark.parametrize(
    ("changed", "titled", "bound_by"),
    [
        ({}, "encoding text", "CPUs (encoder)"),
        ({"images": 10**6}, "encoding image", "CPUs (encoder)"),
        ({"texts": 1000, "images": 10}, "starting Ray and its workers", "start"),
        ({"texts": 1000, "images": 10, "steps": {"training prior": 10**5}}, "training prior",
         "training"),
        ({"texts": 10**9, "cpus": 10**6, "images": 10}, "planning text", "driver"),
    ],
)  # fmt: skip
def test_the_bottleneck_is_what_takes_longest(changed: dict, titled: str, bound_by: str):
    found = predict(calibration(), workload(**changed))
    assert found.bottleneck.seconds == max(stage.seconds for stage in found.stages)
    assert (found.bottleneck.title, found.bottleneck.bound_by) == (titled, bound_by)
    assert found.to_mapping()["bottleneck"]["advice"] == found.advice


def test_every_bound_has_advice():
    stage = StageCost(title="moments of text", rows_of="text", cpu=Cost(row=1.0))
    found = predict(calibration(stages=(stage,)), workload())
    assert found.bottleneck.bound_by == "CPUs"
    gpu = StageCost(title="encoding text", rows_of="text", device=Cost(row=1.0))
    beside = predict(calibration(stages=(gpu,), gpus=1), workload(gpus=1))
    assert beside.bottleneck.bound_by == "GPUs"
    assert found.advice != beside.advice


def test_what_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"measured without a GPU.*--calibration"):
        predict(calibration(), workload(gpus=4))
    with pytest.raises(ValueError, match="measured beside a GPU"):
        predict(calibration(gpus=1), workload(gpus=0))
    with pytest.raises(ValueError, match="--images"):
        predict(calibration(), workload(images=0))
    text_only = calibration(
        stages=tuple(one for one in calibration().stages if one.rows_of == "text"),
        storage={"dataset": Cost(row=1100.0)},
    )
    assert predict(text_only, workload(images=0)).shards == 31


@pytest.mark.parametrize(
    "changed",
    [{"texts": 0}, {"rows_per_unit": 0}, {"cpus": 0}, {"gpus": -1}, {"price": -1.0},
     {"price": math.nan}, {"price": math.inf}],
)  # fmt: skip
def test_counts_that_are_none_are_refused(changed: dict):
    with pytest.raises(ValueError):
        workload(**changed)


def test_both_sides_and_each_alone():
    stage = StageCost(title="moments of text and image", rows_of="both", cpu=Cost(row=1.0))
    both = predict(calibration(stages=(stage,)), workload(texts=1000, images=500)).stages[1]
    assert both.seconds == 1500.0  # less than a unit: one task, on one CPU
    alone = dataclasses.replace(stage, rows_of="image")
    assert predict(calibration(stages=(alone,)), workload(images=500)).stages[1].seconds == 500.0


def test_stages_are_called_by_the_names_of_the_sides():
    found = predict(calibration(), workload())
    named = found.called(Names(source="audio", target="text"))
    titles = [stage.title for stage in named.stages]
    assert titles[1:5] == ["planning audio", "checking ids", "encoding audio", "encoding text"]
    assert "moments of audio" in titles
    assert named.seconds == found.seconds
    assert named.advice == found.advice
    assert found.called(Names()) == found
