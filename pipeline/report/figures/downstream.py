"""Figures of the downstream evaluation: what models trained by each method know of real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.figures.drawing import (
    Drawing,
    colour,
    handle,
    legend_below,
    marker,
    panels,
    plain,
)
from pipeline.report.methods import method_label

REGIME_LABELS = {
    "text-only": "trained on text alone",
    "real-instructions": "projector on text alone, then real images",
    "double-text": "trained on twice the text alone",
}
"""Regimes as people read them."""

REFERENCE_LABELS = {"blind": "Blind (no picture)", "real-images": "Real images"}
"""The floor and the ceiling."""

_REFERENCE_LINES = {"blind": ":", "real-images": "--"}


def trained_label(name: str) -> str:
    """Return a method or a reference as people know it."""
    return REFERENCE_LABELS.get(name) or method_label(name)


def draw_downstream(results: Mapping[str, Any]) -> Drawing:
    """Draw the average of every method by regime, between floor and ceiling."""
    title = "What a model trained on substitutes knows of real images"
    marks, intervals = results["marks"], results["intervals"]
    regimes = list(marks)
    counts = [len(_measured(marks[regime])) for regime in regimes]
    figure, axes = panels(
        title,
        len(regimes),
        1,
        1.3 + sum(0.45 + 0.24 * count for count in counts),
        sharex=True,
        height_ratios=[count + 1 for count in counts],
    )
    for panel, regime in zip(axes[:, 0], regimes, strict=True):
        names = _measured(marks[regime])
        for position, name in enumerate(names):
            _draw_point(panel, name, position, marks[regime][name], intervals[regime][name])
        for name, line in _REFERENCE_LINES.items():
            if name in marks[regime]:
                panel.axvline(
                    marks[regime][name]["average"], color="#222222", linestyle=line, linewidth=1
                )
        panel.set_yticks(range(len(names)), [plain(trained_label(name)) for name in names])
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.grid(visible=False, axis="y")
        panel.set_title(REGIME_LABELS.get(regime, regime), loc="left")
    axes[-1, 0].set_xlabel("average over tasks, asked about real images")
    legend_below(
        figure,
        [
            *(
                handle(REFERENCE_LABELS[name], color="#222222", linestyle=line)
                for name, line in _REFERENCE_LINES.items()
            ),
            handle("95 % interval over seeds", color="black", linewidth=1),
        ],
        2,
    )
    return Drawing(
        "downstream",
        title,
        "Further right is better. The dotted line is a model that never sees a picture, the dashed "
        "line one trained on real images; methods lie between, and the gap that is left to the "
        "dashed line is what pairs would still buy.",
        figure,
    )


def _measured(marks: Mapping[str, Any]) -> list[str]:
    return [name for name in marks if name not in REFERENCE_LABELS]


def _draw_point(
    panel: Any,
    name: str,
    position: int,
    marks: Mapping[str, float],
    intervals: Mapping[str, Sequence[float] | None],
) -> None:
    known = intervals["average"]
    if known:
        panel.plot(known, (position, position), "-", color="black", linewidth=1)
    panel.plot(
        marks["average"],
        position,
        marker=marker(name),
        color=colour(name),
        markeredgecolor="#222222",
        markeredgewidth=0.5,
        markersize=7,
        linestyle="",
    )
