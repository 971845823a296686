"""A calibration is stored and read back as it was; what is none is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.forecast.calibration import Calibration, Cost
from pipeline.names import Names
from tests.forecast.samples import calibration


def test_it_is_read_back_as_it_was():
    stored = calibration(gpus=8).to_json()
    assert Calibration.from_json(stored) == calibration(gpus=8)
    assert Calibration.from_json(stored.encode()).to_json() == stored


def test_costs_add_up():
    cost = Cost(1.0, 2.0, 3.0)
    assert cost.of(10, 100) == 321.0
    assert (cost + cost).of(10, 100) == cost.times(2).of(10, 100) == 642.0


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda said: said.pop(name)


def _with(value: object, *path: Any) -> Callable[[dict[str, Any]], object]:
    def change(said: Any) -> None:
        for key in path[:-1]:
            said = said[key]
        said[path[-1]] = value

    return change


DAMAGE = [
    (_without("stages"), "missing stages"),
    (_with(1, "more"), "unknown more"),
    (_with(2, "version"), "version 2.*measure again"),
    (_with("\x1b[2J", "version"), r"version \\x1b\[2J"),
    (_with("two", "cpus"), "cpus has the wrong type"),
    (_with(True, "cpus"), "cpus has the wrong type"),
    (_with(0, "cpus"), "cpus is less than 1"),
    (_with(-1, "images"), "images is less than 0"),
    (_with(-0.5, "start"), "start is below 0"),
    (_with([], "stages"), "no stage"),
    (_with("captions", "stages", 0, "rows_of"), "rows_of is none of"),
    (_with(0, "stages", 0, "units_a_task"), "units_a_task is less than 1"),
    (_with(-1.0, "stages", 2, "device", "row"), "row is below 0"),
    (_with("fast", "stages", 2, "device", "row"), "row has the wrong type"),
    (_with([1], "stages", 1), "not a JSON object"),
    (_with({"row": 1.0}, "storage", "dataset"), "missing fixed, unit"),
    (_with(1e3, "worker_memory"), "worker_memory has the wrong type"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_what_is_none_is_refused(change: Callable[[Any], object], message: str):
    said = json.loads(calibration().to_json())
    change(said)
    with pytest.raises(ValueError, match=message) as raised:
        Calibration.from_json(json.dumps(said))
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "1", '{"version": 1}', "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(text: str | bytes):
    with pytest.raises(ValueError):
        Calibration.from_json(text)


def test_numbers_are_finite():
    for wrong in ("NaN", "Infinity", "1e999"):
        text = calibration().to_json().replace('"start": 8.0', f'"start": {wrong}')
        assert wrong in text
        with pytest.raises(ValueError, match=r"holds the number|not finite"):
            Calibration.from_json(text)


def test_it_is_good_for_its_own_configuration():
    costs = calibration(configuration={"encoder.model": "demo", "method": "anisoalign"})
    costs.check_fits({"encoder.model": "demo", "method": "anisoalign"})
    with pytest.raises(ValueError, match=r"is of encoder\.model demo, the configuration has ViT"):
        costs.check_fits({"encoder.model": "ViT-B-32", "method": "anisoalign"})
    with pytest.raises(ValueError, match="fits None"):
        costs.check_fits({"encoder.model": "demo", "method": "anisoalign", "fits": True})
    given = {"text embeddings given": True}
    with pytest.raises(ValueError, match="is of audio embeddings given False"):
        calibration(configuration={"text embeddings given": False}).check_fits(
            given, Names(source="audio", target="text")
        )
