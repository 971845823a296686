"""Trials summarised: means, Student's intervals, shares closed and claims, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pipeline.evaluation.downstream.summary import summarise_trials

T_2 = 4.302652729911275
"""Student's 97.5 % quantile of 2 degrees of freedom."""


def trial(method: str, seed: int, **averages: float) -> dict[str, Any]:
    """Return a trial of regimes (underscores for dashes) with their averages, as it is written."""
    return {
        "method": method,
        "seed": seed,
        "marks": {
            regime.replace("_", "-"): {"colour": value / 2, "average": value}
            for regime, value in averages.items()
        },
    }


AVERAGES = {
    "identity": (0.40, 0.42, 0.44),
    "c3": (0.50, 0.52, 0.54),
    "unicorn": (0.70, 0.73, 0.76),
    "realign": (0.52, 0.60, 0.50),
    "anisoalign": (0.60, 0.62, 0.64),
    "anisoalign-init": (0.55, 0.56, 0.57),
}


def sample_trials(seeds: tuple[int, ...] = (3, 4, 5)) -> list[dict[str, Any]]:
    found = [
        trial(method, seed, text_only=values[place])
        for method, values in AVERAGES.items()
        for place, seed in enumerate(seeds)
    ]
    for place, seed in enumerate(seeds):
        found.append(trial("blind", seed, blind=0.30 + 0.01 * place))
        found.append(trial("real-images", seed, **{"real-images": 0.90 + 0.02 * place}))
    return found


def test_marks_are_means_with_students_intervals():
    found = summarise_trials(sample_trials(), {"data": "made up"})
    assert list(found["marks"]) == ["text-only"]
    marks, intervals = found["marks"]["text-only"], found["intervals"]["text-only"]
    assert set(marks) == set(intervals) == {*AVERAGES, "blind", "real-images"}
    for method, values in AVERAGES.items():
        mean = sum(values) / 3
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        half = T_2 * spread / math.sqrt(3)
        assert marks[method] == pytest.approx({"average": mean, "colour": mean / 2})
        assert intervals[method]["average"] == pytest.approx([mean - half, mean + half])
        assert intervals[method]["colour"] == pytest.approx([(mean - half) / 2, (mean + half) / 2])
    assert found["seeds"] == [3, 4, 5]
    assert found["facts"] == {"data": "made up"}
    assert found["trials"] == sample_trials()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_intervals_end_where_marks_do():
    trials = [trial("c3", seed, text_only=value) for seed, value in enumerate((0.0, 1.0))]
    found = summarise_trials(trials, {})
    assert found["intervals"]["text-only"]["c3"]["average"] == [0.0, 1.0]


def test_shares_closed_lie_between_no_alignment_and_real_images():
    closed = summarise_trials(sample_trials(), {})["closed"]["text-only"]
    assert set(closed) == set(AVERAGES) - {"identity"}
    # Identity is 0.42 and real images 0.92 in the mean; c3 is 0.1 above it in every seed.
    assert closed["c3"]["share"] == pytest.approx(0.2)
    assert closed["c3"]["interval"] == pytest.approx([0.2, 0.2])
    assert closed["anisoalign"]["share"] == pytest.approx(0.4)
    pairs = zip(AVERAGES["realign"], AVERAGES["identity"], strict=True)
    differences = [value - start for value, start in pairs]
    mean = sum(differences) / 3
    half = T_2 * math.sqrt(sum((one - mean) ** 2 for one in differences) / 2 / 3)
    assert closed["realign"]["share"] == pytest.approx(mean / 0.5)
    assert closed["realign"]["interval"] == pytest.approx(
        [(mean - half) / 0.5, (mean + half) / 0.5]
    )


@pytest.mark.parametrize("without", ["identity", "real-images"])
def test_without_both_ends_nothing_is_closed(without: str):
    trials = [one for one in sample_trials() if one["method"] != without]
    assert summarise_trials(trials, {})["closed"] == {"text-only": {}}


def test_where_real_images_are_no_better_nothing_is_closed():
    trials = [one for one in sample_trials() if one["method"] != "real-images"]
    trials += [trial("real-images", seed, **{"real-images": 0.4}) for seed in (3, 4, 5)]
    assert summarise_trials(trials, {})["closed"] == {"text-only": {}}


def test_claims_hold_or_not_or_stay_open():
    claims = {one["text"]: one for one in summarise_trials(sample_trials(), {})["claims"]}
    holds = {text: one["holds"] for text, one in claims.items()}
    assert holds == {
        "blind < identity": "yes",
        "identity < c3": "yes",
        "identity < unicorn": "yes",
        "identity < realign": "open",
        "identity < anisoalign": "yes",
        "c3 < anisoalign": "yes",
        "unicorn < anisoalign": "no",
        "realign < anisoalign": "open",
        "anisoalign < real-images": "yes",
        "anisoalign-init < anisoalign": "yes",
    }
    claim = claims["unicorn < anisoalign"]
    assert claim["regime"] == "text-only"
    assert claim["difference"] == pytest.approx(-0.11)
    half = T_2 * 0.01 / math.sqrt(3)
    assert claim["interval"] == pytest.approx([-0.11 - half, -0.11 + half])


def test_twice_the_text_is_claimed_to_be_more():
    trials = [
        trial(method, seed, text_only=0.5 + 0.01 * seed, double_text=0.6 + 0.01 * seed)
        for method in ("anisoalign", "realign", "c3")
        for seed in range(2)
    ]
    found = summarise_trials(trials, {})
    assert list(found["marks"]) == ["text-only", "double-text"]
    twice = [one for one in found["claims"] if "twice" in one["text"]]
    assert [one["text"] for one in twice] == [
        "anisoalign < anisoalign on twice the text",
        "realign < realign on twice the text",
    ]
    assert all(one["regime"] == "double-text" and one["holds"] == "yes" for one in twice)
    assert all(one["difference"] == pytest.approx(0.1) for one in twice)


def test_one_seed_has_no_intervals_and_claims_nothing():
    found = summarise_trials(sample_trials((3,)), {})
    assert found["marks"]["text-only"]["c3"]["average"] == 0.50
    for values in found["intervals"]["text-only"].values():
        assert values == {"colour": None, "average": None}
    assert found["closed"]["text-only"]["c3"]["share"] == pytest.approx(0.2)
    assert found["closed"]["text-only"]["c3"]["interval"] is None
    assert found["claims"] == []


def test_references_stand_in_every_regime():
    trials = [
        *(trial("c3", seed, text_only=0.5, real_instructions=0.7) for seed in (0, 1)),
        *(trial("blind", seed, blind=0.2 + 0.1 * seed) for seed in (0, 1)),
        *(trial("real-images", seed, **{"real-images": 0.9}) for seed in (0, 1)),
    ]
    found = summarise_trials(trials, {})
    assert list(found["marks"]) == ["text-only", "real-instructions"]
    for marks in found["marks"].values():
        assert list(marks) == ["c3", "blind", "real-images"]
        assert marks["blind"]["average"] == pytest.approx(0.25)
        assert marks["real-images"]["average"] == pytest.approx(0.9)


def test_real_images_have_their_own_marks_where_they_are_few():
    trials = [
        trial("c3", 0, text_only=0.5, real_instructions=0.7),
        trial("real-images", 0, **{"real-images": 0.9, "real-instructions": 0.8}),
    ]
    marks = summarise_trials(trials, {})["marks"]
    assert marks["text-only"]["real-images"]["average"] == 0.9
    assert marks["real-instructions"]["real-images"]["average"] == 0.8


def test_a_method_of_some_seeds_is_compared_in_those():
    trials = [one for one in sample_trials() if one["method"] != "c3" or one["seed"] == 4] + [
        trial("unicorn", 9, text_only=0.1)
    ]
    found = summarise_trials(trials, {})
    marks, intervals = found["marks"]["text-only"], found["intervals"]["text-only"]
    assert marks["c3"]["average"] == 0.52
    assert intervals["c3"]["average"] is None
    assert intervals["identity"]["average"] is not None
    closed = found["closed"]["text-only"]
    assert closed["c3"] == {"share": pytest.approx(0.2), "interval": None}
    # Seed 9 has no identity to compare with.
    assert marks["unicorn"]["average"] == pytest.approx((0.70 + 0.73 + 0.76 + 0.1) / 4)
    assert closed["unicorn"]["share"] == pytest.approx(0.31 / 0.5)
    assert "identity < c3" not in {one["text"] for one in found["claims"]}


def test_a_method_of_some_regimes_is_shown_in_those():
    trials = [
        *(trial("c3", seed, text_only=0.5, double_text=0.6) for seed in (0, 1)),
        *(trial("realign", seed, text_only=0.5) for seed in (0, 1)),
    ]
    found = summarise_trials(trials, {})
    assert list(found["marks"]["double-text"]) == ["c3"]
    assert list(found["marks"]["text-only"]) == ["c3", "realign"]


def test_a_task_that_some_seeds_asked_is_summarised_over_those():
    trials = [trial("c3", seed, text_only=0.5) for seed in (0, 1, 2)]
    del trials[0]["marks"]["text-only"]["colour"]
    trials[1]["marks"]["text-only"]["hallucination"] = 0.8
    found = summarise_trials(trials, {})
    assert found["marks"]["text-only"]["c3"] == pytest.approx(
        {"average": 0.5, "colour": 0.25, "hallucination": 0.8}
    )
    assert found["intervals"]["text-only"]["c3"]["hallucination"] is None
