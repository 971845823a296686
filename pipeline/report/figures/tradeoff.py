"""Keeping the source against entering the target, with the frontier of closed-form maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.names import Names
from pipeline.report.figures.drawing import (
    Drawing,
    Marker,
    colour,
    formula,
    handle,
    legend_below,
    marker,
    panels,
    plain,
)
from pipeline.report.figures.labels import Point, number_points
from pipeline.report.methods import contenders, method_label
from pipeline.report.metrics import (
    described_metrics,
    first_round,
    interval,
    mixing,
    mixing_interval,
    names_of,
)

_SOURCE_METRICS = ("omega", "psi")
_STEPS_BETWEEN = 40
_FRONTIER_COLOUR = "#c4c4c4"
_FRONTIER_WIDTH = 6
_CLOSE_SHARE = 0.5
_LINE_WIDTH = 0.8
_ORACLE_LINE = ":"
_BAND = ("bures-block", "bures-subspace")
"""The closed-form maps whose envelope is the frontier; other transports are drawn dashed."""
MIXING_LABEL = "mixing M (harmonic mean of M_Z and M_X)"


def draw_tradeoff(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw Omega and Psi of every method against its mixing, and the closed-form frontier."""
    frontier = curves.get("frontier") or {}
    names = names_of(metrics)
    title = entering(names)
    return Drawing(
        "tradeoff",
        title,
        f"Right is better mixed with the {names.targets}, up keeps more of the {names.sources}; "
        "numbers name the methods, and bars are 95 % intervals, those of the mixing from both ends "
        "of M_Z and M_X." + _of_first(metrics, frontier),
        _draw(metrics, frontier, list(metrics["methods"]), title),
    )


def draw_tradeoff_close(metrics: Mapping[str, Any], curves: Mapping[str, Any]) -> Drawing:
    """Draw the same around the methods that mix, where the frontier runs."""
    frontier = curves.get("frontier") or {}
    title = "The same, close up"
    caption = "The methods that mix at least half as well as the best, on axes of their own"
    if frontier:
        caption += (
            ": the grey band is the closed-form frontier, the best of the Bures maps by block and "
            "on the subspace, so a method above and to the right of it does what these cannot; a "
            "thin line is a map of one rank (the small figure at its end) as it moves the "
            f"{names_of(metrics).sources} further, dashed where it keeps their similarities too"
        )
    near = mixing_methods({"": metrics})
    return Drawing(
        "tradeoff-close",
        title,
        f"{caption}.{_of_first(metrics, frontier)}",
        _draw(metrics, frontier, near, title, close=True),
    )


def entering(names: Names) -> str:
    """Return what the trade-off is between."""
    return f"Entering the {names.targets} against keeping the {names.sources}"


def _of_first(metrics: Mapping[str, Any], frontier: Mapping[str, Any]) -> str:
    return first_round(metrics, what="The lines of the frontier") if frontier else ""


def mixing_methods(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the methods that mix at least half as well as the best: those of a close-up."""
    mixed = {
        name: mixing(found["methods"][name]["m_z"], found["methods"][name]["m_x"])
        for found in runs.values()
        for name in contenders(found)
    }
    mixed = {name: value for name, value in mixed.items() if math.isfinite(value)}
    best = max(mixed.values(), default=0.0)
    near = [name for name, value in mixed.items() if value >= _CLOSE_SHARE * best]
    return near or [name for found in runs.values() for name in found["methods"]]


def _draw(
    metrics: Mapping[str, Any],
    frontier: Mapping[str, Any],
    names: Sequence[str],
    title: str,
    *,
    close: bool = False,
) -> Any:
    entries = len(names) + len(frontier) + bool(frontier)
    sides = names_of(metrics)
    told = described_metrics(sides)
    figure, axes = panels(title, 2, 1, 5.6 + 0.16 * math.ceil(entries / 2), sharex=True)
    methods = {name: metrics["methods"][name] for name in names}
    numbers = [str(list(metrics["methods"]).index(name) + 1) for name in names]
    points = {
        metric: [
            (mixing(values["m_z"], values["m_x"]), values[metric]) for values in methods.values()
        ]
        for metric in _SOURCE_METRICS
    }
    ends: list[list[Point]] = []
    for panel, metric in zip(axes[:, 0], _SOURCE_METRICS, strict=True):
        for name, where in zip(names, points[metric], strict=True):
            if not is_known(where):
                continue
            _interval_bars(
                panel, where, mixing_interval(metrics, name), interval(metrics, name, metric)
            )
            draw_point(panel, name, where, marker(name))
        panel.margins(0.07)
        ends.append(draw_frontier(panel, frontier, metric, close=close))
        panel.set_ylabel(f"{formula(told[metric].symbol)}, {told[metric].name}")
    axes[-1, 0].set_xlabel(formula(MIXING_LABEL))
    legend_below(
        figure,
        [
            *(
                method_entry(f"{number}  {method_label(name, sides)}", name)
                for number, name in zip(numbers, names, strict=True)
            ),
            *_frontier_entries(frontier),
        ],
        2,
    )
    figure.draw_without_rendering()  # so that the panels have their size when numbers are placed
    for panel, metric, blocked in zip(axes[:, 0], _SOURCE_METRICS, ends, strict=True):
        numbered = zip(points[metric], numbers, strict=True)
        known = [(where, number) for where, number in numbered if is_known(where)]
        number_points(
            panel, [where for where, _ in known], [number for _, number in known], blocked
        )
    return figure


def method_entry(label: str, name: str, shape: Marker | None = None) -> Any:
    """Return a method's entry in a legend."""
    return handle(
        plain(label),
        marker=shape or marker(name),
        linestyle="",
        color=colour(name),
        markeredgecolor="#222222",
        markeredgewidth=0.6,
        markersize=7,
    )


def draw_point(panel: Any, name: str, where: Point, shape: Marker) -> None:
    """Draw a method's point."""
    panel.plot(
        *where,
        marker=shape,
        linestyle="",
        color=colour(name),
        markersize=8,
        markeredgecolor="#222222",
        markeredgewidth=0.6,
        zorder=4,
    )


def _interval_bars(panel: Any, where: Point, across: Point | None, upwards: Point | None) -> None:
    if across:
        panel.plot(across, (where[1], where[1]), "-", color="#444444", linewidth=0.9, zorder=3)
    if upwards:
        panel.plot((where[0], where[0]), upwards, "-", color="#444444", linewidth=0.9, zorder=3)


def draw_frontier(
    panel: Any, frontier: Mapping[str, Any], metric: str, *, close: bool
) -> list[Point]:
    """Draw a line for each rank of each transport, the closed-form envelope, and the oracle.

    A close-up names the ranks of the closed-form maps, and the oracle, which runs far off, may
    leave it. Returns where the lines of the ranks end.
    """
    lines: list[list[Point]] = []
    band: list[list[Point]] = []
    for name, rows in frontier.items():
        if name == "oracle":
            continue
        for rank in sorted({row["rank"] for row in rows}):
            chosen = [row for row in rows if row["rank"] == rank]
            points = _path(sorted(chosen, key=lambda row: row["displacement"]), metric)
            if not points:
                continue
            panel.plot(
                *zip(*points, strict=True), _line(name), color=colour(name), linewidth=_LINE_WIDTH
            )
            if close and name in _BAND:
                panel.annotate(
                    str(rank),
                    points[-1],
                    xytext=(3, 0),
                    textcoords="offset points",
                    fontsize=6.5,
                    color=colour(name),
                    va="center",
                ).set_in_layout(False)
            lines.append(points)
            if name in _BAND:
                band.append(points)
    if band:
        panel.plot(
            *zip(*upper_envelope(band), strict=True),
            "-",
            color=_FRONTIER_COLOUR,
            linewidth=_FRONTIER_WIDTH,
            solid_capstyle="round",
            zorder=1.5,
        )
    if "oracle" in frontier:
        limits = panel.axis()
        rows = sorted(frontier["oracle"], key=lambda row: row["alpha"])
        xs, ys = ([point[axis] for point in _path(rows, metric)] for axis in (0, 1))
        panel.plot(xs, ys, _ORACLE_LINE, color=colour("oracle"), linewidth=1.2)
        if close:
            panel.axis(limits)
    return [line[-1] for line in lines]


def _line(name: str) -> str:
    return "-" if name in _BAND else "--"


def _path(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Point]:
    found = [row["metrics"] for row in rows]
    points = [(mixing(values["m_z"], values["m_x"]), values[metric]) for values in found]
    return [point for point in points if is_known(point)]


def is_known(point: Point) -> bool:
    """Return whether a point has both coordinates."""
    return all(map(math.isfinite, point))


def _frontier_entries(frontier: Mapping[str, Any]) -> list[Any]:
    entries = [
        handle(
            f"{method_label(name)}, a line a rank",
            color=colour(name),
            linestyle=_line(name),
            linewidth=_LINE_WIDTH,
        )
        for name in frontier
        if name != "oracle"
    ]
    if any(name in frontier for name in _BAND):
        entries.append(
            handle("closed-form frontier", color=_FRONTIER_COLOUR, linewidth=_FRONTIER_WIDTH)
        )
    if "oracle" in frontier:
        entries.append(
            handle("oracle, by share removed", color=colour("oracle"), linestyle=_ORACLE_LINE)
        )
    return entries


def upper_envelope(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the points of some paths that no other point of them beats on both axes, by x.

    Paths are read as straight between their points.
    """
    points = [point for line in lines for point in _dense(line)]
    best: list[Point] = []
    for point in sorted(points, reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def _dense(line: Sequence[Point]) -> list[Point]:
    between = [
        (
            start[0] + (end[0] - start[0]) * step / _STEPS_BETWEEN,
            start[1] + (end[1] - start[1]) * step / _STEPS_BETWEEN,
        )
        for start, end in pairwise(line)
        for step in range(_STEPS_BETWEEN)
    ]
    return [*between, line[-1]]
