"""Fewer images: seeded subsets, each measured as the method itself would be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.align.settings import AlignSettings
from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.pairs import Clouds, Pairs
from pipeline.evaluation.target_size import check_image_counts, target_size
from tests.align.clouds import SMALL, clouds

FITTING = Clouds(*clouds(80, 100))
HELD_OUT = Pairs(*clouds(60, 60, seed=9))


def test_every_count_method_and_shrinkage_once():
    points = target_size(FITTING, HELD_OUT, SMALL, [80, 20, 20], seed=2)
    found = [(point["images"], point["method"], point["shrinkage"]) for point in points]
    fits = [
        ("realign", "none"),
        ("bures-gromov", "none"),
        ("bures-gromov", "ledoit-wolf"),
        ("anisoalign", "none"),
        ("anisoalign", "ledoit-wolf"),
    ]
    assert found == [(count, *fit) for count in (20, 80) for fit in fits]
    by_fit = {key: point["metrics"] for key, point in zip(found, points, strict=True)}
    # All images are those of the whole fit, in another order of sums.
    for method, shrinkage in fits[:3]:
        whole = fit_methods([method], FITTING, replace(SMALL, shrinkage=shrinkage), 2)
        expected = compare(whole, HELD_OUT, 2, resamples=0).metrics["methods"][method]
        assert by_fit[80, method, shrinkage] == pytest.approx(expected, rel=1e-3)
    assert by_fit[20, "bures-gromov", "none"] != by_fit[20, "bures-gromov", "ledoit-wolf"]
    assert by_fit[20, "realign", "none"] != by_fit[80, "realign", "none"]


def test_subsets_are_seeded():
    first, again, other = (
        target_size(FITTING, HELD_OUT, SMALL, [20], seed)[0]["metrics"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first["delta_mu"] != other["delta_mu"]


@pytest.mark.parametrize(
    ("count", "settings", "said"),
    [
        (81, AlignSettings(), "--image-counts has 81, but there are 80 images"),
        (2, AlignSettings(), "align.rank=auto needs 3 or more"),
        (6, SMALL, "align.rank=6 needs 7 or more"),
    ],
)
def test_counts_that_cannot_be(count: int, settings: AlignSettings, said: str):
    with pytest.raises(ValueError, match=said):
        check_image_counts([50, count], 80, settings)
    check_image_counts([3, 80], 80, AlignSettings())
