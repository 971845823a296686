"""Figures of training and data: losses, block phases, metrics by the number of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.report.figures.drawing import (
    GREY,
    IMAGE_COLOUR,
    TEXT_COLOUR,
    Drawing,
    colour,
    formula,
    handle,
    legend_below,
    marker,
    panels,
    plain,
    wrapped,
)
from pipeline.report.figures.tradeoff import method_entry
from pipeline.report.methods import method_label
from pipeline.report.metrics import METRICS, first_round, mixing, names_of

_STAGES = {"prior": "Stage I, phase prior", "refiner": "Stage II, refiner"}
_MOST_STEPS_DRAWN = 1000
_MOST_BLOCKS = 4
_CLOUDS = {
    "target": (IMAGE_COLOUR, ""),
    "source": (TEXT_COLOUR, "////"),
    "substitute": ("#5B2A86", "...."),
}


def draw_training(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the loss of Stage I and Stage II, raw light and smoothed dark."""
    runs = curves["training"]
    stages = [stage for stage in _STAGES if any(run.get(stage) for run in runs.values())]
    title = "Training losses"
    names = names_of(metrics)
    figure, axes = panels(title, max(1, len(stages)), 1, 0.6 + 1.9 * max(1, len(stages)))
    entries = []
    for panel, stage in zip(axes[:, 0], stages, strict=False):
        for name, run in runs.items():
            losses = run.get(stage)
            if not losses:
                continue
            stride = math.ceil(len(losses) / _MOST_STEPS_DRAWN)
            steps = range(1, len(losses) + 1, stride)
            panel.plot(steps, losses[::stride], color=colour(name), alpha=0.3, linewidth=0.7)
            panel.plot(
                steps,
                smoothed(losses)[::stride],
                color=colour(name),
                linewidth=1.8,
                marker=marker(name),
                markeredgecolor="#222222",
                markeredgewidth=0.5,
                markersize=5,
                markevery=0.18,
            )
        panel.set_title(_STAGES[stage], loc="left")
        panel.set(xlabel="step", ylabel="loss (no unit)")
    for name in runs:
        entries.append(
            handle(
                plain(f"{method_label(name, names)}, smoothed"),
                color=colour(name),
                linewidth=1.8,
                marker=marker(name),
                markeredgecolor="#222222",
                markersize=5,
            )
        )
    entries.append(handle("raw", color=GREY, alpha=0.4, linewidth=0.7))
    legend_below(figure, entries, 2)
    return Drawing(
        "training",
        title,
        "A dark curve that has gone flat has learnt what it can; one that still falls at the right "
        "edge wants more steps, and one that rises wants a smaller learning rate."
        + first_round(metrics),
        figure,
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of the losses around each step, over a twentieth of all steps."""
    reach = len(losses) // 40
    means = []
    for step in range(len(losses)):
        around = losses[max(0, step - reach) : step + reach + 1]
        means.append(math.fsum(around) / len(around))
    return means


def draw_phases(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw rose plots of the phases of a few blocks: target, source, substitute."""
    phases = curves["phases"]
    edges = phases["edges"]
    blocks = phases["blocks"][:_MOST_BLOCKS]
    clouds = [cloud for cloud in _CLOUDS if cloud in phases]
    names = names_of(metrics)
    labels = {
        "target": f"{names.targets} (target)",
        "source": f"{names.sources} (source)",
        "substitute": "substitutes",
    }
    if not names.default:  # longer words beside one another
        labels = {cloud: label.replace(" (", "\n(") for cloud, label in labels.items()}
    title = "Phases of a few blocks"
    figure, axes = panels(
        title,
        len(blocks),
        len(clouds),
        0.6 + 1.65 * len(blocks),
        subplot_kw={"projection": "polar"},
    )
    widths = [high - low for low, high in pairwise(edges)]
    for row, block in enumerate(blocks):
        # The area of a wedge, not its length, is what the eye compares.
        lengths = {
            cloud: [math.sqrt(density) for density in phases[cloud][row]] for cloud in clouds
        }
        longest = max(
            (value for values in lengths.values() for value in values if math.isfinite(value)),
            default=0.0,
        )
        for panel, cloud in zip(axes[row], clouds, strict=True):
            shade, hatch = _CLOUDS[cloud]
            panel.bar(
                edges[:-1],
                lengths[cloud],
                width=widths,
                align="edge",
                color=shade,
                edgecolor="white",
                linewidth=0.4,
                hatch=hatch,
            )
            panel.set(ylim=(0, longest or 1), yticks=[])
            panel.set_xticks([0, math.pi / 2, math.pi, 3 * math.pi / 2], ["0", "π/2", "π", "−π/2"])
            panel.tick_params(labelsize=7, pad=-2)
            panel.spines["polar"].set_color("#bbbbbb")
            if row == 0:
                panel.set_title(labels[cloud], fontsize=8.5)
        axes[row, 0].set_ylabel(f"block {block}", labelpad=20)
    return Drawing(
        "phases",
        title,
        "A wedge's area is the share of samples with that phase (radians): after alignment the "
        f"roses on the right should look like those of the {names.targets} on the left."
        + first_round(metrics, what="Phases"),
        figure,
    )


def draw_target_size(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw metrics against the number of images of the fit, with and without shrinkage."""
    rows = curves["target_size"]
    names = list(dict.fromkeys(row["method"] for row in rows))
    sides = names_of(metrics)
    lines = {"none": "-", "ledoit-wolf": "--"}
    shown = {
        "mixing": "mixing M",
        **{metric: METRICS[metric].symbol for metric in ("omega", "psi", "retrieval_r1")},
    }
    title = f"How many {sides.targets} does a fit need?"
    figure, axes = panels(title, 2, 2, 4.6, sharex=True)
    for panel, (metric, label) in zip(axes.flat, shown.items(), strict=True):
        for name in names:
            for shrinkage, line in lines.items():
                chosen = sorted(
                    (row for row in rows if (row["method"], row["shrinkage"]) == (name, shrinkage)),
                    key=lambda row: row["images"],
                )
                panel.plot(
                    [row["images"] for row in chosen],
                    [_value(row["metrics"], metric) for row in chosen],
                    line,
                    color=colour(name),
                    marker=marker(name),
                    markersize=5,
                    markeredgecolor="#222222",
                    markeredgewidth=0.5,
                    markerfacecolor=colour(name) if shrinkage == "none" else "white",
                )
        panel.set_xscale("log")
        panel.set_ylabel(formula(label))
        panel.minorticks_off()
        counts = sorted({row["images"] for row in rows})
        panel.set_xticks(counts, [f"{count:,}" for count in counts], rotation=45, fontsize=7)
    for panel in axes[-1]:
        panel.set_xlabel(wrapped(f"{sides.targets} in the fit (log scale)", 30))
    legend_below(
        figure,
        [
            *(method_entry(method_label(name, sides), name) for name in names),
            handle("plain covariance", color=GREY, linestyle="-"),
            handle("Ledoit-Wolf shrinkage", color=GREY, linestyle="--"),
        ],
        2,
    )
    return Drawing(
        "target-size",
        title,
        f"Where a curve goes flat, more {sides.targets} no longer help; where the dashed curve "
        "lies above the solid one, shrinking the covariances pays (M is the harmonic mean of M_Z "
        "and M_X)." + first_round(metrics),
        figure,
    )


def _value(values: Mapping[str, float], metric: str) -> float:
    return mixing(values["m_z"], values["m_x"]) if metric == "mixing" else values[metric]
