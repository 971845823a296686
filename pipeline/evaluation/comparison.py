"""Comparing methods on pairs: fitted without pairs on one part, measured on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import Aligner, PairedAligner, normalise
from pipeline.align.registry import create_aligner
from pipeline.align.settings import AlignSettings
from pipeline.align.training import Progress
from pipeline.evaluation.curves import (
    CloudView,
    gap_curves,
    phase_curves,
    phase_method,
    rounded,
    shows_cloud,
    training_curves,
)
from pipeline.evaluation.pairs import Clouds, Pairs
from pipeline.geometry.alignment_metrics import MethodMeasures, PairedMeasurement
from pipeline.geometry.diagnostics import Gap

Counted = Callable[[int, int], None]
"""Called with how many are measured and how many there are."""

RESAMPLES = 200
"""Bootstrap resamples of the held-out pairs."""


@dataclass(frozen=True)
class Comparison:
    """What was measured: `metrics` as in metrics.json, and the `curves` that a report draws."""

    metrics: dict[str, Any]
    curves: dict[str, Any]


def fit_methods(
    methods: Sequence[str],
    fitting: Clouds,
    settings: AlignSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Aligner]:
    """Fit methods by name on two unpaired clouds; raises ValueError for an unknown name.

    `progress` is called with stages named by their method: "anisoalign prior".
    """
    aligners = {name: create_aligner(name, settings, seed) for name in methods}
    for name, aligner in aligners.items():
        if isinstance(aligner, AnisoAlign):
            told = _of_method(name, progress)
            aligner.fit(fitting.image, fitting.text, progress=told)
        else:
            aligner.fit(fitting.image, fitting.text)
    return aligners


def _of_method(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, step, steps, loss: progress(f"{name} {stage}", step, steps, loss)


def compare(
    aligners: Mapping[str, Aligner],
    held_out: Pairs,
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
    progress: Counted | None = None,
) -> Comparison:
    """Measure every fitted method on held-out pairs, with 95 % intervals over the pairs.

    Metrics: `methods` and `intervals` by method and metric, the `gap` before, `n`, `seed`, the
    number of `resamples`, and whether `neighbours` are `exact`, with the lowest `recall`. Curves:
    `spectra`, `subspace_overlap`, `residual_spectrum`, `clouds` (places of pairs in a plane),
    `method_spectra`, `training`, and with an AnisoAlign aligner `phases`. Substitutes are made,
    measured and dropped one method at a time.

    Raises:
        ValueError: when there are too few pairs for their neighbours.
    """
    gap = Gap.of(held_out.image, held_out.text)
    shared = PairedMeasurement.of(held_out.image, held_out.text, seed=seed, resamples=resamples)
    measured: dict[str, MethodMeasures] = {}
    phases: dict[str, Any] = {}
    view = CloudView(held_out)
    clouds: dict[str, Any] = {}
    with_phases = phase_method(aligners)
    for name, aligner in aligners.items():
        substitute = substitutes(aligner, held_out)
        measured[name] = shared.measure(substitute)
        if shows_cloud(name):
            clouds[name] = view.of(substitute)
        if name == with_phases:
            assert isinstance(aligner, AnisoAlign)
            phases = {"phases": phase_curves(aligner, held_out, substitute)}
        if progress is not None:
            progress(len(measured), len(aligners))
    recalls = [measures.recall for measures in measured.values()]
    metrics = {
        "methods": {name: measures.metrics for name, measures in measured.items()},
        "intervals": {name: measures.intervals for name, measures in measured.items()},
        "gap": gap.metrics(),
        "n": held_out.image.shape[0],
        "seed": seed,
        "resamples": resamples,
        "neighbours": {"exact": shared.exact, "recall": min(recalls, default=1.0)},
    }
    curves = {
        **gap_curves(gap),
        "clouds": {
            "image": view.of(held_out.image),
            "text": view.of(held_out.text),
            "substitutes": clouds,
        },
        "method_spectra": {name: rounded(measures.spectrum) for name, measures in measured.items()},
        "training": training_curves(aligners),
        **phases,
    }
    return Comparison(metrics, curves)


def substitutes(aligner: Aligner, held_out: Pairs) -> Tensor:
    """Return a fitted method's substitutes as unit rows (n, d), as metrics read them."""
    if isinstance(aligner, PairedAligner):
        return normalise(aligner.transform_pairs(held_out.image, held_out.text))
    return normalise(aligner.transform(held_out.text))
