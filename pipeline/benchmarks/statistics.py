"""How fast both passes of the statistics are, against the products that they cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.training import one_thread
from pipeline.benchmarks.clouds import random_cloud
from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, in_turns, step_counter
from pipeline.geometry.moments import Moments

DIMENSIONS = (512, 1280)
REPEATS = 7


@dataclass(frozen=True)
class StatisticsReport:
    """Rates of both passes by width; of the moments also the largest error, of a unit variance.

    The first pass is measured against a bare float32 product X^T X, the second against the
    projection to the frame.
    """

    rows: int
    moments: dict[int, Rates]
    errors: dict[int, float]
    polar: dict[int, Rates]
    ranks: dict[int, int]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is of the first width."""
        parts: dict[str, Any] = {}
        for width, rates in self.moments.items():
            parts[f"moments, d={width}"] = {**rates.to_mapping(), "error": self.errors[width]}
        for width, rates in self.polar.items():
            parts[f"polar, d={width}"] = {**rates.to_mapping(), "rank": self.ranks[width]}
        return {
            "name": "statistics",
            "unit": "rows/s",
            **self.moments[min(self.moments)].to_mapping(),
            "machine": machine_facts(),
            "rows": self.rows,
            "parts": parts,
        }


def run_statistics(
    *, rows: int, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> StatisticsReport:
    """Measure both passes on random clouds of the usual widths, on one thread as in a worker."""
    moments, errors, polar, ranks = {}, {}, {}, {}
    done = step_counter(progress, 2 * len(DIMENSIONS) * REPEATS)

    with one_thread():
        for width in DIMENSIONS:
            images = random_cloud(rows, width, seed)
            moments[width] = in_turns(
                (rows, partial(Moments.of, images)),
                (rows, partial(torch.mm, images.T, images)),
                REPEATS,
                done,
            )
            errors[width] = _error(images)
            aligner = AnisoAlign(seed=seed)
            aligner.fit_frame(
                Moments.of(images), Moments.of(random_cloud(rows, width, seed + 1)), images
            )
            polar[width] = in_turns(
                (rows, partial(aligner.image_statistics, images)),
                (rows, partial(torch.mm, images, aligner.frame.basis)),
                REPEATS,
                done,
            )
            ranks[width] = aligner.frame.rank
    return StatisticsReport(rows, moments, errors, polar, ranks)


def _error(cloud: Tensor) -> float:
    """Return the largest error of a covariance, in units of the mean variance of a coordinate."""
    exact = torch.cov(cloud.to(torch.float64).T, correction=0)
    found = Moments.of(cloud).covariance
    return float((found - exact).abs().max() / exact.diagonal().mean())
