"""The whole evaluation: rounds, what is fitted, what the curves hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pipeline.align.baselines import Identity
from pipeline.align.registry import create_aligner
from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.geometry import evaluate_geometry, separate_rounds, split_rounds
from pipeline.evaluation.pairs import Clouds, Pairs, split_rows
from pipeline.evaluation.summary import summarise
from tests.align.clouds import SMALL, clouds

PAIRS = Pairs(*clouds(80, 80, seed=9))
FITTING = Clouds(*clouds(70, 90))


class Recorder:
    """Notes the bars that were shown; one at a time."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.open = False

    @contextmanager
    def _bar(self, title: str) -> Iterator[None]:
        assert not self.open
        self.open = True
        self.titles.append(title)
        yield
        self.open = False

    @contextmanager
    def training(self) -> Iterator[Callable[[str, int, int, float], None]]:
        with self._bar("training"):
            yield lambda stage, step, steps, loss: None

    @contextmanager
    def counted(self, title: str) -> Iterator[Callable[[int, int], None]]:
        with self._bar(title):
            yield lambda done, total: None


class Alike(Identity):
    """Moves every text to one place, so that no similarity correlates with another."""

    def transform(self, text: torch.Tensor) -> torch.Tensor:
        return torch.eye(1, text.shape[1]).expand_as(text)


def test_every_split_is_fitted_and_measured_on_its_own():
    rounds = split_rounds(PAIRS, 0.5, seed=4, count=2)
    assert [one.seed for one in rounds] == [4, 5]
    recorder = Recorder()
    found = evaluate_geometry(rounds, ["identity", "realign"], SMALL, recorder)
    alone = []
    for seed, one in zip((4, 5), rounds, strict=True):
        assert one.split is not None
        rows = split_rows(80, 0.5, seed)
        assert torch.equal(one.split.held_out, rows.held_out)
        assert torch.equal(one.held_out.image, PAIRS.image[rows.held_out])
        aligners = fit_methods(["identity", "realign"], one.fitting, SMALL, seed)
        alone.append(compare(aligners, one.held_out, seed, resamples=0))
    expected = summarise([comparison.metrics for comparison in alone], "splits")
    fitting = {"images": 40, "texts": 40, "separate": False}
    names = {"source": "text", "target": "image"}
    assert found.metrics == {**expected, "fitting": fitting, "names": names}
    assert found.curves == alone[0].curves
    assert recorder.titles == [
        "training",
        "measuring methods (1 of 2)",
        "training",
        "measuring methods (2 of 2)",
    ]


def test_clouds_of_their_own_leave_all_pairs_to_measure():
    rounds = separate_rounds(FITTING, PAIRS, seed=1)
    own = create_aligner("anisoalign", SMALL, seed=8).fit(FITTING.image, FITTING.text)
    recorder = Recorder()
    found = evaluate_geometry(
        rounds,
        ["realign", "anisoalign"],
        SMALL,
        recorder,
        fitted={"anisoalign": own},
        with_frontier=True,
        displacements=(0.5,),
        image_counts=[70],
    )
    assert found.metrics["n"] == 80
    assert found.metrics["fitting"] == {"images": 70, "texts": 90, "separate": True}
    assert list(found.metrics["methods"]) == ["realign", "anisoalign"]
    # The given aligner is measured, not one with this round's seed.
    aligners = {**fit_methods(["realign"], FITTING, SMALL, 1), "anisoalign": own}
    expected = compare(aligners, PAIRS, 1)
    assert found.metrics["methods"] == expected.metrics["methods"]
    assert found.metrics["intervals"] == expected.metrics["intervals"]
    assert set(found.curves) == {*expected.curves, "frontier", "target_size"}
    assert {point["displacement"] for point in found.curves["frontier"]["bures-block"]} == {0.5}
    assert {point["images"] for point in found.curves["target_size"]} == {70}
    assert recorder.titles[-2:] == ["measuring the frontier", "fitting on fewer images"]


def test_fits_on_the_same_clouds_have_intervals_over_the_pairs():
    rounds = separate_rounds(FITTING, PAIRS, seed=1, count=3)
    assert [one.seed for one in rounds] == [1, 2, 3]
    found = evaluate_geometry(rounds, ["centroid", "c3"], SMALL, Recorder()).metrics
    assert (found["interval_kind"], found["splits"], found["resamples"]) == ("pairs", 3, 200)
    alone = [
        evaluate_geometry([one], ["centroid", "c3"], SMALL, Recorder()).metrics for one in rounds
    ]
    # The seed varies the noise of C3 and nothing of the centroid, whose pairs vary all the same.
    assert len({one["methods"]["c3"]["phi"] for one in alone}) == 3
    assert len({one["methods"]["centroid"]["phi"] for one in alone}) == 1
    for name in ("centroid", "c3"):
        expected = np.mean([one["intervals"][name]["phi"] for one in alone], axis=0)
        assert found["intervals"][name]["phi"] == pytest.approx(expected.tolist())
        low, high = found["intervals"][name]["phi"]
        assert low + 1e-3 < found["methods"][name]["phi"] < high - 1e-3


def test_what_is_not_finite_is_none():
    found = evaluate_geometry(
        separate_rounds(FITTING, PAIRS, 0),
        ["alike"],
        SMALL,
        Recorder(),
        fitted={"alike": Alike().fit(FITTING.image, FITTING.text)},
    )
    assert found.metrics["methods"]["alike"]["psi"] is None
    json.dumps([found.metrics, found.curves], allow_nan=False)


def test_clouds_and_pairs_that_do_not_belong_together():
    narrow = Clouds(FITTING.image[:, :8], FITTING.text[:, :8])
    with pytest.raises(ValueError, match="to fit on have width 8, the pairs 12"):
        separate_rounds(narrow, PAIRS, 0)
    with pytest.raises(ValueError, match="there are 20 pairs to measure on; needed are at least"):
        separate_rounds(FITTING, Pairs(PAIRS.image[:20], PAIRS.text[:20]), 0)
