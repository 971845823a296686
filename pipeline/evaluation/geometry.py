"""The whole evaluation of the geometry: methods over splits, frontier, fewer images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pipeline.align.base import Aligner
from pipeline.align.settings import AlignSettings
from pipeline.align.training import Progress
from pipeline.evaluation.comparison import (
    RESAMPLES,
    Comparison,
    Counted,
    compare,
    fit_methods,
)
from pipeline.evaluation.frontier import DISPLACEMENTS, RANKS, frontier
from pipeline.evaluation.pairs import Clouds, Pairs, Split, split_pairs, split_rows
from pipeline.evaluation.summary import IntervalKind, summarise
from pipeline.evaluation.target_size import check_image_counts, target_size
from pipeline.geometry.neighbours import NEIGHBOURS
from pipeline.names import DEFAULT_NAMES, Names


class Watcher(Protocol):
    """Shows how far the evaluation is: one bar at a time."""

    def training(self) -> AbstractContextManager[Progress]:
        """Show a bar for each training stage while inside."""

    def counted(self, title: str) -> AbstractContextManager[Counted]:
        """Show a bar of things done while inside."""


@dataclass(frozen=True)
class Round:
    """One fit and measurement: its seed, clouds to fit on and pairs that no fit sees.

    `split` says which rows of the pairs are which, None where the clouds are others.
    """

    seed: int
    fitting: Clouds
    held_out: Pairs
    split: Split | None = None


def split_rounds(pairs: Pairs, share: float, seed: int, count: int = 1) -> list[Round]:
    """Return rounds with seeds seed .. seed + count - 1, each with a split of its own.

    Raises:
        ValueError: when a part would be too small to measure.
    """
    rounds = []
    for one in range(seed, seed + count):
        split = split_rows(pairs.image.shape[0], share, one)
        rounds.append(Round(one, *split_pairs(pairs, split), split))
    return rounds


def separate_rounds(fitting: Clouds, pairs: Pairs, seed: int, count: int = 1) -> list[Round]:
    """Return rounds that fit on clouds of their own and measure on all pairs, by seed.

    Raises:
        ValueError: when widths differ or the pairs are too few to measure.
    """
    widths = fitting.image.shape[1], pairs.image.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(
            f"the embeddings to fit on have width {widths[0]}, the pairs {widths[1]}; both must "
            "come from one encoder"
        )
    if pairs.image.shape[0] <= NEIGHBOURS:
        raise ValueError(
            f"there are {pairs.image.shape[0]} pairs to measure on; needed are at least "
            f"{NEIGHBOURS + 1}"
        )
    return [Round(one, fitting, pairs) for one in range(seed, seed + count)]


def evaluate_geometry(
    rounds: Sequence[Round],
    methods: Sequence[str],
    settings: AlignSettings,
    watcher: Watcher,
    *,
    fitted: Mapping[str, Aligner] | None = None,
    with_frontier: bool = False,
    ranks: Sequence[int] = RANKS,
    displacements: Sequence[float] = DISPLACEMENTS,
    image_counts: Sequence[int] = (),
    names: Names = DEFAULT_NAMES,
) -> Comparison:
    """Fit and measure methods in every round and sum up; curves are those of the first round.

    Methods in `fitted` are measured as they are; `ranks` and `displacements` are the frontier's.
    Metrics are as `summarise` has them, with the `names` of the sides and `fitting`: the numbers of
    images and texts, and whether they are `separate` from the pairs. Curves are those of `compare`,
    with `frontier` and `target_size` where asked for. What is not finite is None in both.

    Intervals of one round, and of rounds that measure on the same pairs, are over the pairs; those
    of several splits are between splits.

    Raises:
        ValueError: for an unknown method, and where a setting does not fit the embeddings.
    """
    first = rounds[0]
    check_image_counts(image_counts, first.fitting.image.shape[0], settings, names)
    separate = first.split is None
    kind: IntervalKind = "pairs" if separate or len(rounds) == 1 else "splits"
    comparisons = []
    for number, one in enumerate(rounds, start=1):
        of_all = f" ({number} of {len(rounds)})" if len(rounds) > 1 else ""
        unfitted = [name for name in methods if name not in (fitted or {})]
        with watcher.training() as progress:
            aligners = fit_methods(unfitted, one.fitting, settings, one.seed, progress)
        aligners |= fitted or {}
        with watcher.counted(f"measuring methods{of_all}") as show:
            comparisons.append(
                compare(
                    {name: aligners[name] for name in methods},
                    one.held_out,
                    one.seed,
                    resamples=RESAMPLES if kind == "pairs" else 0,
                    progress=show,
                )
            )
    metrics: dict[str, Any] = summarise([comparison.metrics for comparison in comparisons], kind)
    metrics["names"] = asdict(names)
    metrics["fitting"] = {
        "images": first.fitting.image.shape[0],
        "texts": first.fitting.text.shape[0],
        "separate": separate,
    }
    curves = comparisons[0].curves
    parts = first.fitting, first.held_out, settings
    if with_frontier:
        with watcher.counted("measuring the frontier") as show:
            points = frontier(
                *parts, first.seed, ranks=ranks, displacements=displacements, progress=show
            )
        curves = {**curves, "frontier": points}
    if image_counts:
        with watcher.counted(f"fitting on fewer {names.targets}") as show:
            sizes = target_size(*parts, image_counts, first.seed, progress=show)
        curves = {**curves, "target_size": sizes}
    return Comparison(_finite(metrics), _finite(curves))


def _finite(values: Any) -> Any:
    """Return values with None, JSON's null, for every number that is NaN or infinite."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    return [_finite(value) for value in values] if isinstance(values, list | tuple) else values
