"""Several rounds of an evaluation, summarised in one set of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

IntervalKind = Literal["pairs", "splits"]

_UPPER_TAIL = 0.975
_SHARE = (0.0, 1.0)
_COSINE = (-1.0, 1.0)
_RANGES = {
    "delta_mu": (0.0, 2.0),
    "m_z": (0.0, math.inf),  # relative to random labels, which a little order passes
    "m_x": (0.0, math.inf),
    "a_r": (1.0, math.inf),
    "phi": _COSINE,
    "psi": _COSINE,
    "omega": _SHARE,
    "retrieval_r1": _SHARE,
    "retrieval_r5": _SHARE,
    "retrieval_r10": _SHARE,
    "paired_cosine": _COSINE,
}
"""What a metric can be; Student's intervals end there, as those of resampled pairs do anyway."""


def summarise(rounds: Sequence[Mapping[str, Any]], kind: IntervalKind) -> dict[str, Any]:
    """Return the metrics of one or more rounds as one, with their number under `splits`.

    Every metric of a method and every value of the gap is the mean over rounds. Its 95 % interval
    is of the `kind` noted under `interval_kind`:

    - `pairs`, of one round or of fits measured on the same pairs: the mean over rounds of the ends
      of the intervals over pairs.
    - `splits`: Student's, mean +- t_{0.975, K - 1} sd / sqrt(K), cut to the metric's range; splits
      share pairs, so it is the spread between splits rather than between sets of pairs.

    The recall is the lowest, all else is the first's.
    """
    assert rounds, "there is at least one round"
    assert kind == "pairs" or len(rounds) > 1, "one split has no spread"
    first = rounds[0]
    methods = {
        name: {metric: _over(rounds, "methods", name, metric) for metric in values}
        for name, values in first["methods"].items()
    }
    if kind == "splits":
        ends = {
            name: {
                metric: student_interval(values, *_RANGES[metric])
                for metric, values in metrics.items()
            }
            for name, metrics in methods.items()
        }
    else:
        ends = {
            name: {
                metric: np.mean(_over(rounds, "intervals", name, metric), axis=0).tolist()
                for metric in metrics
            }
            for name, metrics in first["intervals"].items()
        }
    return {
        **first,
        "methods": _means(methods),
        "intervals": ends,
        "gap": _means({"gap": {key: _over(rounds, "gap", key) for key in first["gap"]}})["gap"],
        "neighbours": {
            "exact": all(one["neighbours"]["exact"] for one in rounds),
            "recall": min(one["neighbours"]["recall"] for one in rounds),
        },
        "splits": len(rounds),
        "interval_kind": kind,
    }


def _over(rounds: Sequence[Mapping[str, Any]], *keys: str) -> list[Any]:
    found: list[Any] = []
    for one in rounds:
        value: Any = one
        for key in keys:
            value = value[key]
        found.append(value)
    return found


def _means(values: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: float(np.mean(numbers)) for key, numbers in named.items()}
        for name, named in values.items()
    }


def student_interval(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> list[float]:
    """Return the ends of Student's 95 % interval of the mean of two values or more, cut to a range.

    mean +- t_{0.975, K - 1} sd / sqrt(K) of K values.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # loaded for splits alone

    count = len(values)
    quantile = stdtrit(count - 1, _UPPER_TAIL)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(count))
    mean = float(np.mean(values))
    return [float(end) for end in np.clip((mean - half, mean + half), least, most)]
