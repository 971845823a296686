"""Comparing methods on pairs: fitted without pairs on one part, measured on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import Aligner
from pipeline.align.registry import create_aligner
from pipeline.align.settings import AnisoAlignSettings
from pipeline.align.training import Progress
from pipeline.evaluation.pairs import Pairs
from pipeline.geometry.diagnostics import alignment_metrics, gap_metrics


def fit_methods(
    methods: Sequence[str],
    fitting: Pairs,
    settings: AnisoAlignSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Aligner]:
    """Fit methods by name on two unpaired clouds; raises ValueError for an unknown name."""
    aligners = {name: create_aligner(name, settings, seed) for name in methods}
    for aligner in aligners.values():
        if isinstance(aligner, AnisoAlign):
            aligner.fit(fitting.image, fitting.text, progress=progress)
        else:
            aligner.fit(fitting.image, fitting.text)
    return aligners


def compare(aligners: Mapping[str, Aligner], held_out: Pairs, seed: int = 0) -> dict[str, Any]:
    """Return every metric of every fitted method on held-out pairs, and the gap before.

    The shape is that of metrics.json: `methods`, `gap`, `n`, `seed`.
    """
    methods = {
        name: alignment_metrics(
            held_out.image, held_out.text, aligner.transform(held_out.text), seed=seed
        )
        for name, aligner in aligners.items()
    }
    return {
        "methods": methods,
        "gap": gap_metrics(held_out.image, held_out.text),
        "n": held_out.image.shape[0],
        "seed": seed,
    }
