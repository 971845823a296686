"""The frontier: its points are the methods' own figures, its ranks those that fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.align.registry import create_aligner
from pipeline.align.settings import AlignSettings
from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.frontier import DISPLACEMENTS, ORACLE_SHARES, TRANSPORTS, frontier
from pipeline.evaluation.pairs import Clouds, Pairs
from tests.align.clouds import SMALL, WIDTH, clouds

HELD_OUT = Pairs(*clouds(60, 60, seed=9))


def parts(images: int = 90) -> tuple[Clouds, Pairs]:
    """Return unpaired clouds of unlike sizes to fit on, and pairs."""
    return Clouds(*clouds(images, 110)), HELD_OUT


@pytest.mark.parametrize("mixing", ["random", "learned"])
def test_points_are_what_the_methods_give(mixing: str):
    fitting, held_out = parts()
    settings = replace(SMALL, mixing=mixing)
    told: list[tuple[int, int]] = []
    points = frontier(
        fitting,
        held_out,
        settings,
        seed=3,
        displacements=(0.3, 1.0),
        progress=lambda *count: told.append(count),
    )
    assert list(points) == [*TRANSPORTS, "oracle"]
    for method in TRANSPORTS:
        for point in points[method]:
            assert point["rank"] == 8  # the only one of the ladder up to d = 12
            own = replace(settings, rank=point["rank"], displacement=point["displacement"])
            aligners = fit_methods([method], fitting, own, 3)
            expected = compare(aligners, held_out, 3, resamples=0).metrics["methods"][method]
            assert point["metrics"] == expected
        # All the way, nothing ties Gromov's rotation to the text.
        reached = [0.3] if method == "bures-gromov" else [0.3, 1.0]
        assert [point["displacement"] for point in points[method]] == reached
    for point in points["oracle"]:
        own = replace(settings, oracle=replace(settings.oracle, share=point["alpha"]))
        aligner = create_aligner("oracle", own, 3).fit(fitting.image, fitting.text)
        expected = compare({"oracle": aligner}, held_out, 3, resamples=0).metrics
        assert point["metrics"] == expected["methods"]["oracle"]
    assert [point["alpha"] for point in points["oracle"]] == list(ORACLE_SHARES)
    assert told == [(done, 10) for done in range(1, 11)]


def test_ranks_stay_below_the_number_of_images():
    fitting, held_out = parts(images=8)
    assert WIDTH >= 8
    points = frontier(fitting, held_out, AlignSettings())
    assert list(points) == ["oracle"]
    fitting, held_out = parts(images=9)
    points = frontier(fitting, held_out, AlignSettings())
    assert {point["rank"] for point in points["bures-subspace"]} == {8}
    assert len(points["bures-subspace"]) == len(DISPLACEMENTS)
