"""Bars of metrics by method, with intervals, and the residual spectra by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import Patch

from pipeline.report.figures.drawing import (
    GREY,
    Drawing,
    colour,
    formula,
    handle,
    legend_below,
    marker,
    panels,
    plain,
    visible,
    wrapped,
)
from pipeline.report.methods import CONTROLS, method_label
from pipeline.report.metrics import (
    described_metrics,
    figure_text,
    first_round,
    interval,
    names_of,
)

_CONTROL_HATCH = "////"


def draw_mixing(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw M_Z and M_X of every method."""
    targets = names_of(metrics).targets
    title = f"Target side: how well substitutes mix with {targets}"
    return Drawing(
        "mixing",
        title,
        f"Longer bars mean that substitutes (left) and {targets} (right) see more of the other "
        "kind among their nearest neighbours; a good method is long on both sides.",
        _bars(metrics, ("m_z", "m_x"), title),
    )


def draw_semantics(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw Phi, Psi and Omega of every method."""
    names = names_of(metrics)
    title = f"Source side: how much of the {names.source} is kept"
    return Drawing(
        "semantics",
        title,
        f"Longer bars mean that more is kept of each {names.one_source}'s place, of the "
        f"similarities between {names.sources} and of each {names.one_source}'s neighbourhood; the "
        f"unmoved {names.source} keeps all.",
        _bars(metrics, ("phi", "psi", "omega"), title),
    )


def _bars(metrics: Mapping[str, Any], shown: Sequence[str], title: str) -> Any:
    methods = list(metrics["methods"])
    names = names_of(metrics)
    told = described_metrics(names)
    figure, axes = panels(title, 1, len(shown), 1.45 + 0.24 * len(methods), sharey=True)
    for panel, metric in zip(axes[0], shown, strict=True):
        for position, name in enumerate(methods):
            value = metrics["methods"][name][metric]
            control = name in CONTROLS
            panel.barh(
                position,
                value,
                height=0.72,
                color=colour(name),
                edgecolor="white" if control else "#333333",
                linewidth=0.4,
                hatch=_CONTROL_HATCH if control else "",
            )
            known = interval(metrics, name, metric)
            if known:
                panel.plot(known, (position, position), "-|", color="black", linewidth=1)
            # At the foot of the bar, where no interval runs through the figure.
            panel.text(
                0.02,
                position,
                figure_text(value),
                fontsize=7,
                va="center",
                transform=panel.get_yaxis_transform(),
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
            )
        panel.grid(visible=False, axis="y")
        panel.set_xlim(min(0.0, panel.get_xlim()[0]), max(1.05, panel.get_xlim()[1]))
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        described = told[metric]
        first, _, rest = described.name.partition(" ")
        words = f"{first}\n{wrapped(rest, 20)}"  # long names would run into one another
        panel.set_xlabel(f"{formula(described.symbol)}\n{words}", fontsize=7.5)
    labels = [plain(method_label(name, names)) for name in methods]
    axes[0, 0].set_yticks(range(len(methods)), labels)
    axes[0, 0].invert_yaxis()
    legend_below(
        figure,
        [
            Patch(facecolor="#8c8c8c", edgecolor="white", hatch=_CONTROL_HATCH, label="control"),
            handle("95 % interval", color="black", marker="|", linewidth=1),
        ],
        2,
    )
    return figure


def draw_method_spectra(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the normalised spectrum of the residual that each method leaves."""
    title = "What each method leaves over"
    names = names_of(metrics)
    figure, axes = panels(title, 1, 1, 4.4)
    dimension = max(len(values) for values in curves["method_spectra"].values())
    for position, (name, values) in enumerate(curves["method_spectra"].items()):
        shown = visible(values)
        if not shown:
            continue
        axes[0, 0].plot(
            range(1, len(shown) + 1),
            shown,
            color=colour(name),
            linestyle="--" if name in CONTROLS else "-",
            linewidth=1.3,
            marker=marker(name),
            markeredgecolor="#333333",
            markeredgewidth=0.4,
            markersize=5.5,
            # Staggered, so that markers of methods that nearly agree do not hide each other.
            markevery=(0.02 * position, 0.16),
            label=plain(method_label(name, names)),
        )
    axes[0, 0].axhline(1 / dimension, color=GREY, linestyle=":", label="isotropic")
    axes[0, 0].set(xscale="log", yscale="log")
    axes[0, 0].set(xlabel="eigenvalue number", ylabel="share of the second moment")
    legend_below(figure, axes[0, 0].get_legend_handles_labels()[0], 2)
    return Drawing(
        "method-spectra",
        title,
        f"The spectrum of {names.one_target} minus substitute: the lower a curve starts and the "
        "flatter it runs towards the dotted line, the less structure is left that alignment could "
        "have removed." + first_round(metrics),
        figure,
    )
