"""Several splits of the same pairs, summarised in one set of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_UPPER_TAIL = 0.975


def summarise(splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of one or more splits as one, with their number under `splits`.

    Of one split everything stays. Of more, every metric of a method and every value of the gap is
    the mean over splits, and the 95 % interval of a metric is Student's,
    mean +- t_{0.975, K - 1} sd / sqrt(K); splits share pairs, so it is the spread between splits
    rather than between sets of pairs. The recall is the lowest, `n` and `seed` are the first's.
    """
    assert splits, "there is at least one split"
    first = splits[0]
    if len(splits) == 1:
        return {**first, "splits": 1}
    methods = {
        name: {metric: _over(splits, "methods", name, metric) for metric in values}
        for name, values in first["methods"].items()
    }
    return {
        **first,
        "methods": _means(methods),
        "intervals": {
            name: {metric: _interval(values) for metric, values in metrics.items()}
            for name, metrics in methods.items()
        },
        "gap": _means({"gap": {key: _over(splits, "gap", key) for key in first["gap"]}})["gap"],
        "neighbours": {
            "exact": all(split["neighbours"]["exact"] for split in splits),
            "recall": min(split["neighbours"]["recall"] for split in splits),
        },
        "splits": len(splits),
    }


def _over(splits: Sequence[Mapping[str, Any]], *keys: str) -> list[float]:
    found: list[float] = []
    for split in splits:
        value: Any = split
        for key in keys:
            value = value[key]
        found.append(value)
    return found


def _means(values: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: float(np.mean(numbers)) for key, numbers in named.items()}
        for name, named in values.items()
    }


def _interval(values: Sequence[float]) -> list[float]:
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # loaded for splits alone

    count = len(values)
    quantile = stdtrit(count - 1, _UPPER_TAIL)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(count))
    mean = float(np.mean(values))
    return [mean - half, mean + half]
