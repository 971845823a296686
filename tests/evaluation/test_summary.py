"""Several splits as one: means, Student's intervals, the worst recall."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.pairs import Pairs, split_pairs, split_rows
from pipeline.evaluation.summary import summarise
from tests.align.clouds import clouds


def split(seed: int) -> dict[str, Any]:
    pairs = Pairs(*clouds(120, 120))
    fitting, held_out = split_pairs(pairs, split_rows(120, 0.5, seed))
    return compare(fit_methods(("identity", "centroid"), fitting), held_out, seed, resamples=10)


def test_one_split_stays_as_it_is():
    only = split(4)
    assert summarise([only]) == {**only, "splits": 1}


def test_splits_are_averaged_with_students_intervals():
    splits = [split(seed) for seed in (4, 5, 6)]
    found = summarise(splits)
    assert (found["splits"], found["seed"], found["n"]) == (3, 4, 60)
    assert found.keys() == splits[0].keys() | {"splits"}
    for name in ("identity", "centroid"):
        for metric, mean in found["methods"][name].items():
            values = [one["methods"][name][metric] for one in splits]
            assert mean == pytest.approx(np.mean(values))
            expected = (mean, mean)
            if np.ptp(values) > 0:
                expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            assert found["intervals"][name][metric] == pytest.approx(expected, abs=1e-12)
    for key, mean in found["gap"].items():
        assert mean == pytest.approx(np.mean([one["gap"][key] for one in splits]))


def test_the_recall_is_the_lowest():
    exact, approximate = split(0), split(1)
    approximate["neighbours"] = {"exact": False, "recall": 0.985}
    assert summarise([exact, approximate])["neighbours"] == {"exact": False, "recall": 0.985}
    assert summarise([exact, exact])["neighbours"] == {"exact": True, "recall": 1.0}
