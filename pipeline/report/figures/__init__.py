"""The figures of the report, by section of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.report.figures.bars import draw_method_spectra, draw_mixing, draw_semantics
from pipeline.report.figures.clouds import draw_clouds
from pipeline.report.figures.drawing import Drawing, look
from pipeline.report.figures.gap import (
    draw_centroid_and_residual,
    draw_residual_spectrum,
    draw_spectra,
    draw_subspace_overlap,
)
from pipeline.report.figures.tradeoff import draw_tradeoff, draw_tradeoff_close
from pipeline.report.figures.training import draw_phases, draw_target_size, draw_training

_Draw = Callable[[Mapping[str, Any], Mapping[str, Any]], Drawing]

# Section -> figures, each with the part of the curves that it cannot do without.
_FIGURES: dict[str, tuple[tuple[str | None, _Draw], ...]] = {
    "The gap before alignment": (
        (None, draw_centroid_and_residual),
        ("spectra", draw_spectra),
        ("subspace_overlap", draw_subspace_overlap),
        ("residual_spectrum", draw_residual_spectrum),
    ),
    "What the methods do": (
        ("clouds", draw_clouds),
        (None, draw_tradeoff),
        (None, draw_tradeoff_close),
        (None, draw_mixing),
        (None, draw_semantics),
        ("method_spectra", draw_method_spectra),
    ),
    "Inside the fit": (
        ("training", draw_training),
        ("phases", draw_phases),
        ("target_size", draw_target_size),
    ),
}


FIGURE_NAMES = frozenset(
    {
        "centroid-and-residual",
        "spectra",
        "subspace-overlap",
        "residual-spectrum",
        "clouds",
        "tradeoff",
        "tradeoff-close",
        "mixing",
        "semantics",
        "method-spectra",
        "training",
        "phases",
        "target-size",
        "run-tradeoff",
        "run-bars",
        "downstream",
    }
)
"""The names of all figures of reports and comparisons, by which files of old ones are known."""


def draw_figures(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, list[Drawing]]:
    """Return the figures by section; a figure whose part of the curves is missing is left out."""
    with look():
        drawings = {
            section: [
                draw(metrics, curves) for part, draw in figures if not part or curves.get(part)
            ]
            for section, figures in _FIGURES.items()
        }
    return {section: drawn for section, drawn in drawings.items() if drawn}
