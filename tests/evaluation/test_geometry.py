"""The whole evaluation: rounds, what is fitted, what the curves hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from pipeline.align.registry import create_aligner
from pipeline.evaluation.comparison import compare_with_curves, fit_methods
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
        alone.append(compare_with_curves(aligners, one.held_out, seed, resamples=0))
    expected = summarise([comparison.metrics for comparison in alone])
    fitting = {"images": 40, "texts": 40, "separate": False}
    assert found.metrics == {**expected, "fitting": fitting}
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
    expected = compare_with_curves(aligners, PAIRS, 1)
    assert found.metrics["methods"] == expected.metrics["methods"]
    assert found.metrics["intervals"] == expected.metrics["intervals"]
    assert set(found.curves) == {*expected.curves, "frontier", "target_size"}
    assert {point["displacement"] for point in found.curves["frontier"]["bures-block"]} == {0.5}
    assert {point["images"] for point in found.curves["target_size"]} == {70}
    assert recorder.titles[-2:] == ["measuring the frontier", "fitting on fewer images"]


def test_seeds_vary_where_the_clouds_do_not():
    rounds = separate_rounds(FITTING, PAIRS, seed=1, count=3)
    assert [one.seed for one in rounds] == [1, 2, 3]
    found = evaluate_geometry(rounds, ["c3"], SMALL, Recorder())
    low, high = found.metrics["intervals"]["c3"]["phi"]
    assert low < found.metrics["methods"]["c3"]["phi"] < high


def test_clouds_and_pairs_that_do_not_belong_together():
    narrow = Clouds(FITTING.image[:, :8], FITTING.text[:, :8])
    with pytest.raises(ValueError, match="to fit on have width 8, the pairs 12"):
        separate_rounds(narrow, PAIRS, 0)
    with pytest.raises(ValueError, match="there are 20 pairs to measure on; needed are at least"):
        separate_rounds(FITTING, Pairs(PAIRS.image[:20], PAIRS.text[:20]), 0)
