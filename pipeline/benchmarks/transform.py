"""How fast embeddings are corrected: against bare matrix products, and a copy that scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.baselines import ReAlign
from pipeline.align.settings import PriorSettings, RefinerSettings
from pipeline.align.training import one_thread
from pipeline.benchmarks.clouds import random_cloud
from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, in_turns, step_counter

REPEATS = 7
_FITTING_ROWS = 4096
_FEW: dict[str, Any] = {"steps": 2, "batch_size": 64}


@dataclass(frozen=True)
class TransformReport:
    """Rates of AnisoAlign, against its products alone, and of ReAlign, against copy and scale."""

    rows: int
    dimension: int
    rank: int
    anisoalign: Rates
    realign: Rates

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is AnisoAlign's."""
        return {
            "name": "transform",
            "unit": "rows/s",
            **self.anisoalign.to_mapping(),
            "machine": machine_facts(),
            "rows": self.rows,
            "dimension": self.dimension,
            "rank": self.rank,
            "parts": {
                "anisoalign": self.anisoalign.to_mapping(),
                "realign": self.realign.to_mapping(),
            },
        }


def run_transform(
    *,
    rows: int,
    dimension: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TransformReport:
    """Fit both methods on random clouds and correct a third, on one thread as in a worker."""
    image, text = (random_cloud(_FITTING_ROWS, dimension, seed + one) for one in range(2))
    cloud = random_cloud(rows, dimension, seed + 2)
    done = step_counter(progress, 2 * REPEATS)

    # How long they were trained makes no difference to how fast the networks are.
    anisoalign = AnisoAlign(seed=seed, prior=PriorSettings(**_FEW), refiner=RefinerSettings(**_FEW))
    anisoalign.fit(image, text)
    products = Products(anisoalign, rows)
    realign = ReAlign().fit(image, text)
    with one_thread():
        corrected = in_turns(
            (rows, lambda: anisoalign.transform(cloud)), (rows, products), REPEATS, done
        )
        scaled = in_turns(
            (rows, lambda: realign.transform(cloud)), (rows, lambda: cloud * 1.5), REPEATS, done
        )
    return TransformReport(rows, dimension, anisoalign.frame.rank, corrected, scaled)


class Products:
    """The matrix products alone of a fitted AnisoAlign, over as many rows at once as it takes."""

    def __init__(self, aligner: AnisoAlign, rows: int) -> None:
        """Make operands of the shapes that the map multiplies."""
        width, rank = aligner.dimension, aligner.frame.rank
        hidden = aligner.settings.refiner.width
        shapes = [
            (width, rank),  # coordinates in the frame
            (rank, rank),  # transport
            (rank, width),  # what of the text lies in U
            (3 * rank // 2, hidden),  # the refiner's layers: sine, cosine and log radius,
            (width, hidden),  # the complement,
            (hidden, hidden),
            (hidden, rank),  # changes of phase and radius
            (rank, width),  # back from the frame
        ]
        step = aligner.rows_at_once
        self._batches = [min(step, rows - start) for start in range(0, rows, step)]
        generator = torch.Generator().manual_seed(0)
        self._operands = [
            (
                torch.randn(step, inner, generator=generator),
                torch.randn(inner, outer, generator=generator),
                torch.empty(step, outer),
            )
            for inner, outer in shapes
        ]

    def __call__(self) -> None:
        """Multiply them all."""
        for rows in self._batches:
            for left, right, out in self._operands:
                torch.mm(left[:rows], right, out=out[:rows])
