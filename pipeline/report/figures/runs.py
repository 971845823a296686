"""Figures that hold several runs against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.patches import Patch

from pipeline.report.figures.drawing import (
    Drawing,
    colour,
    formula,
    handle,
    legend_below,
    panels,
    plain,
    wrapped,
)
from pipeline.report.figures.labels import Point, number_points
from pipeline.report.figures.tradeoff import (
    MIXING_LABEL,
    draw_point,
    entering,
    is_known,
    mixing_methods,
)
from pipeline.report.methods import method_label
from pipeline.report.metrics import described_metrics, interval, mixing, names_of_all

_RUN_MARKERS = "osD^vhP*"
_RUN_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "oooo", "----")
_BAR_METRICS = ("m_z", "m_x", "psi", "omega", "retrieval_r1")

Runs = Mapping[str, Mapping[str, Any]]


def measured_methods(metrics: Runs) -> list[str]:
    """Return the methods that any run measured, in the order of the runs."""
    return list(dict.fromkeys(name for found in metrics.values() for name in found["methods"]))


def draw_run_tradeoff(metrics: Runs) -> Drawing:
    """Draw Omega against mixing: a colour and number a method, a marker a run."""
    names = measured_methods(metrics)
    sides = names_of_all(metrics)
    title = f"{entering(sides)}, by run"
    near = set(mixing_methods(metrics))
    rows = math.ceil((len(names) + len(metrics)) / 2)
    figure, axes = panels(title, 2, 1, 6.2 + 0.17 * rows)
    labelled: list[tuple[Any, dict[str, Point]]] = []
    for panel, heading in zip(axes[:, 0], ("all methods", "close-up"), strict=True):
        last: dict[str, Point] = {}
        for number, name in enumerate(names, start=1):
            if heading == "close-up" and name not in near:
                continue
            trail = _trail(panel, metrics, name)
            for start, end in pairwise(trail):
                panel.plot(*zip(start, end, strict=True), "-", color=colour(name), linewidth=0.9)
            last |= {str(number): point for point in trail[-1:]}
        panel.margins(0.08)
        panel.set_title(heading, loc="left")
        panel.set_ylabel(f"Ω, {described_metrics(sides)['omega'].name}")
        labelled.append((panel, last))
    axes[-1, 0].set_xlabel(formula(MIXING_LABEL))
    legend_below(
        figure,
        [
            *(
                Patch(
                    facecolor=colour(name),
                    edgecolor="#222222",
                    linewidth=0.6,
                    label=plain(f"{number}  {method_label(name, sides)}"),
                )
                for number, name in enumerate(names, start=1)
            ),
            *(
                handle(
                    plain(label),
                    marker=_RUN_MARKERS[position % len(_RUN_MARKERS)],
                    linestyle="",
                    color="white",
                    markeredgecolor="#222222",
                )
                for position, label in enumerate(metrics)
            ),
        ],
        2,
    )
    figure.draw_without_rendering()  # so that the panels have their size when numbers are placed
    for panel, last in labelled:
        number_points(panel, list(last.values()), list(last))
    return Drawing(
        "run-tradeoff",
        title,
        "Colour and number are the method, the marker is the run; a thin line joins one method's "
        "runs, so a short line means a result that holds from run to run.",
        figure,
    )


def _trail(panel: Any, metrics: Runs, name: str) -> list[Point]:
    """Draw a method's point of every run that measured it; returns the points."""
    trail = []
    for position, found in enumerate(metrics.values()):
        values = found["methods"].get(name)
        if values is None:
            continue
        where = (mixing(values["m_z"], values["m_x"]), values["omega"])
        if not is_known(where):
            continue
        draw_point(panel, name, where, _RUN_MARKERS[position % len(_RUN_MARKERS)])
        trail.append(where)
    return trail


def draw_run_bars(metrics: Runs) -> Drawing:
    """Draw a few metrics of every method, one bar a run."""
    names = measured_methods(metrics)
    sides = names_of_all(metrics)
    told = described_metrics(sides)
    title = "Metrics by method and run"
    height = 0.8 / len(metrics)
    figure, axes = panels(
        title,
        len(_BAR_METRICS),
        1,
        1.2 + 1.5 * len(_BAR_METRICS) + 0.17 * len(metrics),
        sharex=True,
    )
    for panel, metric in zip(axes[:, 0], _BAR_METRICS, strict=True):
        for run, found in enumerate(metrics.values()):
            for position, name in enumerate(names):
                values = found["methods"].get(name)
                if values is None:
                    continue
                place = position + (run - (len(metrics) - 1) / 2) * height
                panel.bar(
                    place,
                    values[metric],
                    width=height,
                    color=colour(name),
                    edgecolor="#333333",
                    linewidth=0.4,
                    hatch=_RUN_HATCHES[run % len(_RUN_HATCHES)],
                )
                known = interval(found, name, metric)
                if known:
                    panel.plot((place, place), known, "-", color="black", linewidth=1)
        panel.set_ylabel(
            f"{formula(told[metric].symbol)}\n{wrapped(told[metric].name, 24)}", fontsize=8
        )
        panel.grid(visible=False, axis="x")
    axes[-1, 0].set_xticks(
        range(len(names)),
        [plain(method_label(name, sides)) for name in names],
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    legend_below(
        figure,
        [
            Patch(
                facecolor="white",
                edgecolor="#333333",
                hatch=_RUN_HATCHES[run % len(_RUN_HATCHES)],
                label=plain(label),
            )
            for run, label in enumerate(metrics)
        ],
        2,
    )
    return Drawing(
        "run-bars",
        title,
        "Each group is a method, each pattern a run; black lines are 95 % intervals, and bars of "
        "one group whose intervals are apart differ by more than chance.",
        figure,
    )
