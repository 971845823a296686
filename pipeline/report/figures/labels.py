"""Labels beside points that keep clear of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.report.figures.drawing import plain

Point = tuple[float, float]

_NEAR = 10.0  # points between a point and its label
_ROOM = 9.0  # points that a label keeps from points and labels
_OFFSETS = tuple(
    (
        radius * _NEAR * math.cos(math.radians(angle)),
        radius * _NEAR * math.sin(math.radians(angle)),
    )
    for radius in (1, 1.7, 2.4, 3.1)
    # Diagonals first: intervals run along the axes.
    for angle in (45, 135, 225, 315, 65, 115, 155, 205, 245, 295, 25, 335)
)


def number_points(
    panel: Any, points: Sequence[Point], labels: Sequence[str], obstacles: Sequence[Point] = ()
) -> None:
    """Write a label beside each point, away from points, labels and obstacles.

    Greedy and without chance: each label takes the free place nearest to its point, and a thin
    line leads back from a far one.
    """
    scale = 72 / panel.figure.dpi
    spots, blocked = (
        [tuple(scale * value for value in panel.transData.transform(point)) for point in chosen]
        for chosen in (points, obstacles)
    )
    frame = panel.bbox
    taken = spots + blocked
    for spot, point, label in zip(spots, points, labels, strict=True):
        offset = min(_OFFSETS, key=lambda offset: _crowding(spot, offset, taken, frame, scale))
        taken.append((spot[0] + offset[0], spot[1] + offset[1]))
        far = math.hypot(*offset) > 1.2 * _NEAR
        panel.annotate(
            plain(label),
            point,
            xytext=offset,
            textcoords="offset points",
            fontsize=7.5,
            ha="center",
            va="center",
            zorder=5,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 3, "shrinkB": 3}
            if far
            else None,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},
        ).set_in_layout(False)


def _crowding(
    spot: Sequence[float], offset: Point, taken: Sequence[Any], frame: Any, scale: float
) -> float:
    """Return how bad a label's place is: crowded by others, outside the panel, or far away."""
    x, y = spot[0] + offset[0], spot[1] + offset[1]
    inside = (
        frame.x0 * scale + 4 < x < frame.x1 * scale - 4
        and frame.y0 * scale + 4 < y < frame.y1 * scale - 4
    )
    near = sum(max(0.0, _ROOM - math.hypot(x - a, y - b)) for a, b in taken)
    return round(100 * near + 1000 * (not inside) + math.hypot(*offset), 3)
