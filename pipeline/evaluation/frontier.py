"""The frontier: the linear transports over rank and displacement, the oracle over its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any

from pipeline.align.base import Aligner
from pipeline.align.frames import FrozenFrame
from pipeline.align.registry import create_aligner
from pipeline.align.settings import AlignSettings
from pipeline.align.transports import SubspaceTransport
from pipeline.evaluation.comparison import Counted, substitutes
from pipeline.evaluation.pairs import Clouds, Pairs
from pipeline.geometry.alignment_metrics import PairedMeasurement
from pipeline.geometry.moments import Moments

TRANSPORTS = ("bures-block", "bures-subspace", "bures-gromov")
RANKS = (8, 16, 32, 64, 128)
DISPLACEMENTS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
ORACLE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def frontier(
    fitting: Clouds,
    held_out: Pairs,
    settings: AlignSettings,
    seed: int = 0,
    *,
    ranks: Sequence[int] = RANKS,
    displacements: Sequence[float] = DISPLACEMENTS,
    progress: Counted | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Measure every point of the frontier on held-out pairs, fitted on unpaired clouds.

    A point of a transport is {"rank", "displacement", "metrics"}, one of the oracle {"alpha",
    "metrics"}; metrics are those of the method with these settings. Transports are left out where
    no rank fits: ranks are at most d and below the number of images.
    """
    rows, dimension = fitting.image.shape
    usable = [rank for rank in ranks if rank <= dimension and rank < rows]
    steps = sum(len(_reached(method, displacements)) for method in TRANSPORTS)
    total = len(usable) * steps + len(ORACLE_SHARES)
    shared = PairedMeasurement.of(held_out.image, held_out.text, seed=seed)
    points: dict[str, list[dict[str, Any]]] = {}
    aligners = chain(
        _transports(fitting, settings, seed, usable, displacements),
        _oracles(fitting, settings, seed),
    )
    for done, (aligner, place) in enumerate(aligners, start=1):
        metrics = shared.measure(substitutes(aligner, held_out)).metrics
        points.setdefault(aligner.method, []).append({**place, "metrics": metrics})
        if progress is not None:
            progress(done, total)
    return points


def _transports(
    fitting: Clouds,
    settings: AlignSettings,
    seed: int,
    ranks: Sequence[int],
    displacements: Sequence[float],
) -> Iterator[tuple[Aligner, dict[str, float]]]:
    """Yield fitted transports and where they lie; moments are computed once, frames by rank."""
    image, text = Moments.of(fitting.image), Moments.of(fitting.text)
    for method, rank in product(TRANSPORTS, ranks):
        frozen: FrozenFrame | None = None
        for displacement in _reached(method, displacements):
            chosen = replace(settings, rank=rank, displacement=displacement)
            aligner = create_aligner(method, chosen, seed)
            assert isinstance(aligner, SubspaceTransport)
            frozen = frozen or aligner.freeze(image, text, fitting.image)
            aligner.fit_frozen(frozen, image, text)
            aligner.calibrate(aligner.mean_of_mapped(fitting.text))
            yield aligner, {"rank": rank, "displacement": displacement}


def _reached(method: str, displacements: Sequence[float]) -> list[float]:
    """Return how far a method can go: all the way, nothing ties Gromov's rotation to the text."""
    return [t for t in displacements if t < 1 or method != "bures-gromov"]


def _oracles(
    fitting: Clouds, settings: AlignSettings, seed: int
) -> Iterator[tuple[Aligner, dict[str, float]]]:
    for share in ORACLE_SHARES:
        oracle = replace(settings.oracle, share=share)
        aligner = create_aligner("oracle", replace(settings, oracle=oracle), seed)
        yield aligner.fit(fitting.image, fitting.text), {"alpha": share}
