"""Figures of the gap before alignment: spectra, subspaces, centroids, residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from pipeline.report.figures.drawing import (
    GREY,
    IMAGE_COLOUR,
    TEXT_COLOUR,
    Drawing,
    formula,
    legend_below,
    panels,
    visible,
)
from pipeline.report.metrics import figure_text, first_round, names_of


def draw_spectra(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the eigenvalues of both modalities on a log axis."""
    title = "Spectra of both modalities"
    note = first_round(metrics, of_fit=False)
    if not note:  # else the number, a mean over splits, is not that of the curves
        title += f", C_λ = {figure_text(metrics['gap']['c_lambda'])}"
    figure, axes = panels(title, 1, 1, 3.0)
    names = names_of(metrics)
    for side, label, colour, line, marker in (
        ("image", names.targets, IMAGE_COLOUR, "-", "o"),
        ("text", names.sources, TEXT_COLOUR, "--", "s"),
    ):
        values = visible(curves["spectra"][side])
        axes[0, 0].plot(
            range(1, len(values) + 1),
            values,
            line,
            color=colour,
            marker=marker,
            markersize=4,
            markevery=max(1, len(values) // 12),
            label=label,
        )
    axes[0, 0].set(yscale="log", xlabel="eigenvalue number", ylabel="eigenvalue (variance)")
    legend_below(figure, axes[0, 0].get_legend_handles_labels()[0], 2)
    return Drawing(
        "spectra",
        title,
        "Each curve ranks the variances of a cloud along its own main directions: curves of the "
        "same shape mean that both modalities spread alike, even where they point elsewhere."
        + note,
        figure,
    )


def draw_subspace_overlap(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the overlap O_q of the main directions of both modalities against chance."""
    overlap = curves["subspace_overlap"]
    names = names_of(metrics)
    title = "Do both modalities vary along the same directions?"
    figure, axes = panels(title, 1, 1, 3.0)
    panel = axes[0, 0]
    panel.plot(
        overlap["sizes"],
        overlap["overlap"],
        "-o",
        color=IMAGE_COLOUR,
        label=formula("overlap O_q"),
    )
    panel.plot(
        overlap["sizes"], overlap["chance"], "--s", color=GREY, label="chance q / d", markersize=4
    )
    panel.set(xlabel="directions q", ylabel="overlap (share of directions)", ylim=(0, 1.03))
    legend_below(figure, panel.get_legend_handles_labels()[0], 2)
    return Drawing(
        "subspace-overlap",
        title,
        f"Share of the top q directions that {names.targets} and {names.sources} have in common: "
        "the further above chance, the more of the gap can be treated in one shared subspace."
        + first_round(metrics, of_fit=False),
        figure,
    )


def draw_centroid_and_residual(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the mean distance of a pair, the centroid gap and the residual as bars."""
    gap = metrics["gap"]
    title = "What the gap is made of"
    figure, axes = panels(title, 1, 1, 2.1)
    bars = (
        ("pair distance\nmean ‖x − y‖", gap["pair_distance"], GREY, ""),
        ("centroid gap\n$G_{\\mathrm{μ}}$", gap["g_mu"], TEXT_COLOUR, "//"),
        ("residual\n$D$", gap["residual_norm"], IMAGE_COLOUR, ".."),
    )
    for position, (_, value, colour, hatch) in enumerate(bars):
        axes[0, 0].barh(position, value, color=colour, hatch=hatch, edgecolor="white")
        end = value if math.isfinite(value) else 0.0
        axes[0, 0].text(end, position, f" {figure_text(value)}", va="center")
    axes[0, 0].set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes[0, 0].invert_yaxis()
    axes[0, 0].grid(visible=False, axis="y")
    axes[0, 0].margins(x=0.12)
    axes[0, 0].set(xlabel="Euclidean distance between unit vectors")
    return Drawing(
        "centroid-and-residual",
        title,
        "If the gap were a mere shift, the residual bar would be near zero once the centroids are "
        "matched; the longer it is, the more is left for alignment to do.",
        figure,
    )


def draw_residual_spectrum(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the spectrum of the centred residual and its cumulative energy against isotropy."""
    shares = [float(share) for share in curves["residual_spectrum"]]
    gap, dimension = metrics["gap"], len(shares)
    title = "How isotropic is the residual?"
    note = first_round(metrics, of_fit=False)
    if not note:  # else the numbers, means over splits, are not those of the curves
        title += (
            f" A_r = {figure_text(gap['a_r'])}, d_eff = {figure_text(gap['d_eff'])} of {dimension}"
        )
    figure, axes = panels(title, 2, 1, 4.6, sharex=True)
    numbers = range(1, dimension + 1)
    spectrum, energy = axes[0, 0], axes[1, 0]
    shown = visible(shares)
    spectrum.plot(
        numbers[: len(shown)], shown, color=IMAGE_COLOUR, label="residual before alignment"
    )
    spectrum.axhline(1 / dimension, color=GREY, linestyle="--", label="isotropic residual")
    spectrum.set(yscale="log", ylabel="share of the variance")
    energy.plot([0, *numbers], [0, *accumulate(shares)], color=IMAGE_COLOUR)
    energy.plot([0, dimension], [0, 1], color=GREY, linestyle="--")
    mean = ", mean over splits" if note else ""
    energy.axvline(
        gap["d_eff"], color=TEXT_COLOUR, linestyle=":", label=f"effective dimension{mean}"
    )
    energy.set(xlabel="directions K, strongest first", ylabel="cumulative energy E(K)")
    energy.set_ylim(0, 1.02)
    entries = [*spectrum.get_legend_handles_labels()[0], *energy.get_legend_handles_labels()[0]]
    legend_below(figure, entries, 2)
    return Drawing(
        "residual-spectrum",
        title,
        "The further the curves bend away from the dashed lines, the fewer directions hold what "
        "separates pairs, and the more it pays to correct these directions alone." + note,
        figure,
    )
