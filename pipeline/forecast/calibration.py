"""What was measured of a machine and a configuration: what each stage costs, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from pipeline.names import DEFAULT_NAMES, Names
from pipeline.storage.receipts import JsonText, checked, parsed, printable

CALIBRATION_VERSION = 1
"""Goes up when what is measured, or what it means, changes."""

RowsOf = Literal["text", "image", "both", "training"]
"""The rows that a stage goes through: a side's, both sides', or those that training draws."""

_NUMBER = (int, float)
_WHAT = "calibration"


@dataclass(frozen=True)
class Cost:
    """Seconds (of memory and storage: bytes) that come once, with each unit and with each row."""

    fixed: float = 0.0
    unit: float = 0.0
    row: float = 0.0

    def of(self, units: float, rows: float) -> float:
        """Return what so many units and rows cost."""
        return self.fixed + self.unit * units + self.row * rows

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both."""
        return Cost(self.fixed + other.fixed, self.unit + other.unit, self.row + other.row)

    def times(self, factor: float) -> Cost:
        """Return the cost so many times over."""
        return Cost(self.fixed * factor, self.unit * factor, self.row * factor)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage costs, in seconds.

    `driver` is what nothing else goes on beside. Then there is work at the same time: `cpu` of one
    CPU, `device` of one GPU (of one CPU where there are none), and `scheduling` of the driver.
    Beside a GPU the slowest of the three counts. A task takes up to `units_a_task` units, fewer
    where there would be less than `least_tasks`, so that few units keep few workers busy. `step` is
    of a training step.
    """

    title: str
    rows_of: RowsOf
    driver: Cost = Cost()
    cpu: Cost = Cost()
    device: Cost = Cost()
    scheduling: Cost = Cost()
    units_a_task: int = 1
    least_tasks: int = 1
    step: float = 0.0

    def tasks(self, units: float) -> float:
        """Return how many tasks go through so many units, at least 1."""
        return max(1.0, units / self.units_a_task, min(units, self.least_tasks))

    def busy(self, units: float, rows: float, cpus: int, gpus: int) -> dict[str, float]:
        """Return the seconds that each kind of worker is busy, beside one another."""
        wide = self.tasks(units)
        cpu, device = self.cpu.of(units, rows), self.device.of(units, rows)
        found = {"scheduling": self.scheduling.of(units, rows)}
        if gpus:
            return found | {"cpu": cpu / min(cpus, wide), "gpu": device / min(gpus, wide)}
        return found | {"cpu": (cpu + device) / min(cpus, wide)}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The costs of a configuration on a machine; `cpus` and `gpus` are those that Ray had.

    `configuration`: what of it the costs hang on, the encoder's and the method's names among it.
    `disturbed`: the share of the processors that other work took meanwhile.
    `texts` and `images` are the rows that the corpora seem to have, by their files' sizes. `start`:
    seconds until Ray and its workers run. `storage`: bytes by folder, of the text's rows or (what
    ends in "image") the images'. `worker_memory`: bytes of the largest worker, its rows being bytes
    of a unit, of which a row has `text_row_bytes` or `image_row_bytes`; 0 where workers were on
    other machines. `driver_bytes`: the driver's peak on few rows.
    """

    version: int = CALIBRATION_VERSION
    machine: dict[str, Any]
    configuration: dict[str, Any]
    disturbed: float
    dimension: int
    cpus: int
    gpus: int
    texts: int
    images: int
    start: float
    stages: tuple[StageCost, ...]
    storage: dict[str, Cost]
    worker_memory: Cost
    text_row_bytes: float
    image_row_bytes: float
    driver_bytes: float

    def to_json(self) -> str:
        """Return the calibration as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: JsonText) -> Calibration:
        """Return the calibration that `to_json` wrote.

        Raises:
            ValueError: if it is none, or one of another version.
        """
        value = parsed(text, _WHAT)
        if isinstance(value, dict) and value.get("version") not in (None, CALIBRATION_VERSION):
            raise ValueError(
                f"a calibration of version {printable(str(value['version']))}; this release reads "
                f"version {CALIBRATION_VERSION}: measure again"
            )
        said = checked(value, _KINDS, _WHAT)
        _check_counts(said, ("dimension", "cpus"), least=1)
        _check_counts(said, ("gpus", "texts", "images"), least=0)
        for name in ("disturbed", "start", "text_row_bytes", "image_row_bytes", "driver_bytes"):
            _check_number(said[name], name)
        said["stages"] = tuple(_stage(one) for one in said["stages"])
        if not said["stages"]:
            raise ValueError(f"not a {_WHAT}: it has no stage")
        said["storage"] = {str(name): _cost(one) for name, one in said["storage"].items()}
        said["worker_memory"] = _cost(said["worker_memory"])
        return cls(**said)

    def check_fits(self, configuration: Mapping[str, Any], names: Names = DEFAULT_NAMES) -> None:
        """Raise ValueError if it was measured with another encoder, method or kind of run.

        What a configuration leaves to its files, it has no fact of.
        """
        for name in sorted(configuration):
            measured, wanted = self.configuration.get(name), configuration.get(name)
            if measured != wanted:
                raise ValueError(
                    f"the calibration is of {names.instead(name)} {printable(str(measured))}, the "
                    f"configuration has {wanted}: measure with this configuration, without "
                    "--calibration"
                )


_KINDS: dict[str, tuple[type, ...]] = {
    "version": (int,),
    "machine": (dict,),
    "configuration": (dict,),
    "disturbed": _NUMBER,
    "dimension": (int,),
    "cpus": (int,),
    "gpus": (int,),
    "texts": (int,),
    "images": (int,),
    "start": _NUMBER,
    "stages": (list,),
    "storage": (dict,),
    "worker_memory": (dict,),
    "text_row_bytes": _NUMBER,
    "image_row_bytes": _NUMBER,
    "driver_bytes": _NUMBER,
}
_COST_KINDS = {field.name: _NUMBER for field in fields(Cost)}
_STAGE_KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "rows_of": (str,),
    **dict.fromkeys(("driver", "cpu", "device", "scheduling"), (dict,)),
    **dict.fromkeys(("units_a_task", "least_tasks"), (int,)),
    "step": _NUMBER,
}


def _stage(value: object) -> StageCost:
    said = checked(value, _STAGE_KINDS, _WHAT)
    if said["rows_of"] not in get_args(RowsOf):
        raise ValueError(f"not a {_WHAT}: rows_of is none of {', '.join(get_args(RowsOf))}")
    _check_counts(said, ("units_a_task", "least_tasks"), least=1)
    _check_number(said["step"], "step")
    costs = {name: _cost(said[name]) for name in ("driver", "cpu", "device", "scheduling")}
    return StageCost(**{**said, **costs})


def _cost(value: object) -> Cost:
    said = checked(value, _COST_KINDS, _WHAT)
    for name, one in said.items():
        _check_number(one, name)
    return Cost(**said)


def _check_counts(said: Mapping[str, Any], names: tuple[str, ...], least: int) -> None:
    for name in names:
        if said[name] < least:
            raise ValueError(f"not a {_WHAT}: {name} is less than {least}")


def _check_number(value: object, name: str) -> None:
    number = cast(float, value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"not a {_WHAT}: {name} is below 0 or not finite")
