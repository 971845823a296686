"""Several rounds as one: means, intervals over pairs or between splits, the worst recall."""

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
    return compare(
        fit_methods(("identity", "centroid"), fitting), held_out, seed, resamples=10
    ).metrics


def test_one_split_stays_as_it_is():
    only = split(4)
    assert summarise([only], "pairs") == {**only, "splits": 1, "interval_kind": "pairs"}


def test_rounds_on_the_same_pairs_average_the_ends_of_their_intervals():
    rounds = [split(seed) for seed in (4, 5, 6)]
    found = summarise(rounds, "pairs")
    assert (found["splits"], found["interval_kind"], found["resamples"]) == (3, "pairs", 10)
    for name, metrics in found["intervals"].items():
        assert metrics.keys() == found["methods"][name].keys()
        for metric, ends in metrics.items():
            expected = np.mean([one["intervals"][name][metric] for one in rounds], axis=0)
            assert ends == pytest.approx(expected.tolist(), abs=1e-6)
    low, high = found["intervals"]["centroid"]["phi"]
    assert low < found["methods"]["centroid"]["phi"] < high


def test_intervals_end_where_the_range_of_a_metric_does():
    rounds = [split(seed) for seed in (4, 5)]
    ends = {
        "delta_mu": (0.001, 0.2),
        "m_z": (0.01, 1.02),
        "m_x": (0.9, 1.03),
        "a_r": (1.01, 3.0),
        "psi": (0.4, 0.999),
        "omega": (0.01, 0.99),
        "retrieval_r1": (0.02, 0.98),
        "paired_cosine": (-0.99, 0.99),
    }
    for metric, values in ends.items():
        for one, value in zip(rounds, values, strict=True):
            one["methods"]["centroid"][metric] = value
    found = summarise(rounds, "splits")["intervals"]["centroid"]
    for share in ("omega", "retrieval_r1"):
        assert found[share] == [0, 1]
    assert found["paired_cosine"] == [-1, 1]
    assert found["psi"][1] == 1
    assert found["delta_mu"][0] == found["m_z"][0] == 0
    assert found["a_r"][0] == 1
    # Mixing is relative to random labels, so values, and intervals with them, may pass 1.
    assert found["m_z"][1] > 1.02
    assert found["m_x"][1] > 1.03


def test_splits_are_averaged_with_students_intervals():
    splits = [split(seed) for seed in (4, 5, 6)]
    found = summarise(splits, "splits")
    assert (found["splits"], found["seed"], found["n"]) == (3, 4, 60)
    assert found.keys() == splits[0].keys() | {"splits", "interval_kind"}
    assert found["interval_kind"] == "splits"
    for name in ("identity", "centroid"):
        for metric, mean in found["methods"][name].items():
            values = [one["methods"][name][metric] for one in splits]
            assert mean == pytest.approx(np.mean(values))
            expected = (mean, mean)
            if np.ptp(values) > 0:
                expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            cosine = metric in ("phi", "psi", "paired_cosine")
            least = {"a_r": 1.0}.get(metric, -1.0 if cosine else 0.0)
            most = np.inf if metric in ("a_r", "m_z", "m_x") else 2.0 if metric == "delta_mu" else 1
            expected = np.clip(expected, least, most).tolist()
            assert found["intervals"][name][metric] == pytest.approx(expected, abs=1e-12)
    for key, mean in found["gap"].items():
        assert mean == pytest.approx(np.mean([one["gap"][key] for one in splits]))


def test_the_recall_is_the_lowest():
    exact, approximate = split(0), split(1)
    approximate["neighbours"] = {"exact": False, "recall": 0.985}
    found = summarise([exact, approximate], "splits")["neighbours"]
    assert found == {"exact": False, "recall": 0.985}
    assert summarise([exact, exact], "pairs")["neighbours"] == {"exact": True, "recall": 1.0}
