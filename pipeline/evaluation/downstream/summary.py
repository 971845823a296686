"""The marks of all trials, summarised: means and intervals over seeds, and the order they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.evaluation.downstream.settings import REGIMES
from pipeline.evaluation.downstream.trials import BLIND, REAL_IMAGES, REFERENCES
from pipeline.evaluation.summary import student_interval

Marks = Mapping[str, Mapping[str, Mapping[str, float]]]

AVERAGE = "average"
_UNALIGNED = "identity"
_BASELINES = ("c3", "unicorn", "realign")
_ANISOALIGN = "anisoalign"


@dataclass(frozen=True)
class Claim:
    """A difference that is expected to be above zero, in points of the average, over seeds.

    `holds` is "yes" or "no" where the interval lies on one side of zero, else "open".
    """

    regime: str
    text: str
    difference: float
    interval: list[float]
    holds: Literal["yes", "no", "open"]


def summarise_trials(
    trials: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what downstream.json holds of trials (as `TrialResult.to_mapping` gives them).

    `marks` and `intervals` (Student's 95 % over seeds, None of one seed) by regime, method and
    task; the references blind and real-images stand in every regime. `closed` is the share of the
    distance from no alignment to real images that a method closes, in means over seeds, by
    regime. `claims` are the expected order, each with its paired difference over seeds.
    """
    by_seed = {seed: _of_seed(trials, seed) for seed in sorted({one["seed"] for one in trials})}
    seeds = list(by_seed)
    regimes = [name for name in REGIMES if any(name in one["marks"] for one in trials)]
    methods = list(dict.fromkeys(one["method"] for one in trials))
    marks: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    closed: dict[str, Any] = {}
    for regime in regimes:
        values = {
            method: _values([by_seed[seed] for seed in seeds], regime, method) for method in methods
        }
        values = {method: found for method, found in values.items() if found}
        marks[regime] = {
            method: {task: float(np.mean(numbers)) for task, numbers in found.items()}
            for method, found in values.items()
        }
        intervals[regime] = {
            method: {task: _interval(numbers, 0.0, 1.0) for task, numbers in found.items()}
            for method, found in values.items()
        }
        closed[regime] = _closed([by_seed[seed][regime] for seed in seeds], methods)
    claims = list(_claims(by_seed, regimes))
    return {
        "marks": marks,
        "intervals": intervals,
        "closed": closed,
        "claims": [vars(claim) for claim in claims],
        "seeds": seeds,
        "facts": dict(facts),
        "trials": list(trials),
    }


def _of_seed(trials: Sequence[Mapping[str, Any]], seed: int) -> Marks:
    """Return the marks of a seed by regime and method."""
    found: dict[str, dict[str, Mapping[str, float]]] = {regime: {} for regime in REGIMES}
    for one in trials:
        if one["seed"] != seed:
            continue
        for regime in REGIMES:
            name = regime
            if one["method"] in REFERENCES and regime not in one["marks"]:
                name = one["method"]
            if name in one["marks"]:
                found[regime][one["method"]] = one["marks"][name]
    return found


def _values(seeds: Sequence[Marks], regime: str, method: str) -> dict[str, list[float]]:
    found = [marks[regime][method] for marks in seeds if method in marks[regime]]
    tasks = dict.fromkeys(task for one in found for task in one)
    return {task: [one[task] for one in found if task in one] for task in tasks}


def _interval(values: Sequence[float], least: float, most: float) -> list[float] | None:
    return student_interval(values, least, most) if len(values) > 1 else None


def _closed(
    seeds: Sequence[Mapping[str, Mapping[str, float]]], methods: Sequence[str]
) -> dict[str, Any]:
    """Return the share (method - identity) / (real - identity) of means; its interval over seeds.

    The interval is that of the numerator, the distance taken as known.
    """
    distances = _differences(seeds, _UNALIGNED, REAL_IMAGES)
    distance = float(np.mean(distances)) if distances else 0.0
    if distance <= 0:
        return {}
    found = {}
    for method in methods:
        shares = [one / distance for one in _differences(seeds, _UNALIGNED, method)]
        if shares and method not in (_UNALIGNED, *REFERENCES):
            known = student_interval(shares) if len(shares) > 1 else None
            found[method] = {"share": float(np.mean(shares)), "interval": known}
    return found


def _differences(
    seeds: Sequence[Mapping[str, Mapping[str, float]]], lower: str, higher: str
) -> list[float]:
    """Return how much the average of one is above the other's, in the seeds that have both."""
    return [
        marks[higher][AVERAGE] - marks[lower][AVERAGE]
        for marks in seeds
        if lower in marks and higher in marks
    ]


def _claims(by_seed: Mapping[int, Marks], regimes: Sequence[str]) -> Iterator[Claim]:
    """Yield the order that the paper's tables show, for what was measured."""
    for regime in regimes:
        expected = [(BLIND, _UNALIGNED)]
        expected += [(_UNALIGNED, name) for name in (*_BASELINES, _ANISOALIGN)]
        expected += [(name, _ANISOALIGN) for name in _BASELINES]
        expected += [(_ANISOALIGN, REAL_IMAGES)]
        methods = list(dict.fromkeys(name for marks in by_seed.values() for name in marks[regime]))
        expected += [(name, _ANISOALIGN) for name in methods if name.startswith(f"{_ANISOALIGN}-")]
        for lower, higher in expected:
            yield from _claim(by_seed, (regime, lower), (regime, higher), f"{lower} < {higher}")
    if {"text-only", "double-text"} <= set(regimes):
        for name in (_ANISOALIGN, "realign"):
            once, twice = ("text-only", name), ("double-text", name)
            yield from _claim(by_seed, once, twice, f"{name} < {name} on twice the text")


def _claim(
    by_seed: Mapping[int, Marks], lower: tuple[str, str], higher: tuple[str, str], text: str
) -> Iterator[Claim]:
    differences = [
        marks[higher[0]][higher[1]][AVERAGE] - marks[lower[0]][lower[1]][AVERAGE]
        for marks in by_seed.values()
        if lower[1] in marks[lower[0]] and higher[1] in marks[higher[0]]
    ]
    if len(differences) < 2:
        return
    low, high = student_interval(differences)
    holds: Literal["yes", "no", "open"] = "yes" if low > 0 else "no" if high < 0 else "open"
    yield Claim(higher[0], text, float(np.mean(differences)), [low, high], holds)
