"""The two clouds of embeddings, before alignment and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.figures.drawing import (
    GREY,
    IMAGE_COLOUR,
    TEXT_COLOUR,
    Drawing,
    colour,
    handle,
    legend_below,
    panels,
    plain,
)
from pipeline.report.methods import method_label
from pipeline.report.metrics import first_round, names_of

_JOINED_PAIRS = 25
_COLUMNS = 2
_GAP, _FIRST, _SECOND = range(3)
"""Coordinates of a place: along the gap, and where the spreads differ most and second most."""

_Places = Sequence[Sequence[float]]


def draw_clouds(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw images with texts as they are, then along the gap with each method's substitutes."""
    clouds = curves["clouds"]
    images, names = clouds["image"], names_of(metrics)
    title = "The two clouds, before alignment and after"
    rows = math.ceil((1 + len(clouds["substitutes"])) / _COLUMNS)
    figure, axes = panels(title, rows, _COLUMNS, 1.0 + 2.2 * rows, sharey=True)
    before, *after = axes.flat
    _draw_panel(before, images, clouds["text"], TEXT_COLOUR, _GAP)
    before.set_title("before, the gap from left to right", loc="left")
    before.set_xlabel("along the gap")
    for panel, (name, places) in zip(after, clouds["substitutes"].items(), strict=False):
        _draw_panel(panel, images, places, colour(name), _SECOND)
        panel.set_title(plain(f"after {method_label(name, names)}"), loc="left")
        panel.set_xlabel("second direction")
        panel.set_xlim(_limits([images, *clouds["substitutes"].values()], _SECOND))
    for panel in after[len(clouds["substitutes"]) :]:
        panel.set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel("first direction")
    legend_below(
        figure,
        [
            handle(plain(label), color=shade, marker=shape, linestyle="", markersize=5)
            for label, shade, shape in (
                (names.targets, IMAGE_COLOUR, "o"),
                (names.sources, TEXT_COLOUR, "^"),
                *(
                    (f"{method_label(name, names)}", colour(name), "^")
                    for name in clouds["substitutes"]
                ),
            )
        ],
        3,
    )
    return Drawing(
        "clouds",
        title,
        f"{len(images):,} held-out pairs; a thin line joins what belongs together. First and "
        f"second direction are those beside the gap in which the spreads of {names.targets} and "
        f"{names.sources} differ most. After alignment the view is along the gap: substitutes that "
        f"spread as the {names.targets} do have entered their cloud."
        + first_round(metrics, what="The clouds"),
        figure,
    )


def _draw_panel(panel: Any, images: _Places, moved: _Places, shade: str, across: int) -> None:
    """Draw two clouds: one coordinate across, the first direction up."""
    for places, tone, shape in ((images, IMAGE_COLOUR, "o"), (moved, shade, "^")):
        panel.plot(
            [place[across] for place in places],
            [place[_FIRST] for place in places],
            marker=shape,
            linestyle="",
            color=tone,
            markersize=2.6,
            markeredgewidth=0,
            alpha=0.7,
        )
    for image, other in list(zip(images, moved, strict=True))[:_JOINED_PAIRS]:
        panel.plot(
            (image[across], other[across]),
            (image[_FIRST], other[_FIRST]),
            "-",
            color=GREY,
            linewidth=0.5,
            zorder=1,
        )


def _limits(clouds: Sequence[_Places], axis: int) -> tuple[float, float]:
    values = [place[axis] for places in clouds for place in places]
    room = 0.05 * (max(values) - min(values))
    return min(values) - room, max(values) + room
