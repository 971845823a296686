"""The report of an evaluation: one page that needs nothing else, and its figures as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.names import Names
from pipeline.report.downstream_tables import DOWNSTREAM_TITLE, page_values
from pipeline.report.figures import FIGURE_NAMES, draw_figures
from pipeline.report.figures.downstream import draw_downstream
from pipeline.report.figures.drawing import Drawing, look, png, svg
from pipeline.report.methods import CONTROLS, contenders, method_label
from pipeline.report.metrics import (
    METRICS,
    described_metrics,
    diagnostic,
    figure_text,
    first_round,
    interval,
    interval_note,
    names_of,
    split_symbols,
    with_nan,
)
from pipeline.report.verdict import verdict
from pipeline.storage.locations import write_bytes


@dataclass(frozen=True)
class _ShownFigure:
    name: str
    caption: str
    svg: Markup


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    curves: Mapping[str, Any],
    title: str,
    downstream: Mapping[str, Any] | None = None,
) -> Path:
    """Write index.html and figures/NAME.png and .svg into a folder; returns the page's path.

    `metrics` and `curves` are what metrics.json and curves.json hold; None is shown as –.
    `downstream` is what downstream.json holds: a part of the page of its own. The page holds its
    figures and styles and loads nothing. The same input gives the same bytes.
    """
    metrics, curves = with_nan(metrics), with_nan(curves)
    names = names_of(metrics)
    drawings = draw_figures(metrics, curves)
    if downstream is not None:
        with look():
            drawings[DOWNSTREAM_TITLE] = [draw_downstream(downstream)]
    html = render(
        "report.html",
        names,
        title=title,
        verdict=verdict(metrics),
        rows=_method_rows(metrics),
        intervals=interval_note(metrics),
        gap=[
            {"key": key, "text": figure_text(value), "exact": exact(value), **_meaning(key, names)}
            for key, value in metrics["gap"].items()
        ],
        sections=write_figures(folder, drawings),
        downstream=None if downstream is None else page_values(downstream),
        facts=facts(metrics),
    )
    return write_page(folder, html)


def write_figures(
    folder: Path, sections: Mapping[str, Sequence[Drawing]]
) -> dict[str, list[_ShownFigure]]:
    """Write figures/NAME.png and .svg; returns what the page shows, by section.

    Figures of a report written here before, which this one has not, are removed.
    """
    target = folder / "figures"
    shown: dict[str, list[_ShownFigure]] = {}
    for section, drawings in sections.items():
        for drawing in drawings:
            text = svg(drawing)
            write_bytes(str(target / f"{drawing.name}.svg"), text.encode())
            write_bytes(str(target / f"{drawing.name}.png"), png(drawing))
            figure = _ShownFigure(drawing.name, drawing.caption, Markup(text))
            shown.setdefault(section, []).append(figure)
    written = {figure.name for figures in shown.values() for figure in figures}
    assert written <= FIGURE_NAMES, f"{written - FIGURE_NAMES} missing in FIGURE_NAMES"
    for name in FIGURE_NAMES - written:
        for kind in ("png", "svg"):
            (target / f"{name}.{kind}").unlink(missing_ok=True)
    return shown


def write_page(folder: Path, html: str) -> Path:
    """Write index.html, after all that it refers to; returns its path."""
    path = folder / "index.html"
    write_bytes(str(path), html.encode())
    return path


def render(template: str, names: Names, **values: Any) -> str:
    """Return a page of the report's look on sides of these names; all values are escaped."""
    metrics = described_metrics(names)
    return _environment().get_template(template).render(metrics=metrics, **values)


def facts(metrics: Mapping[str, Any]) -> str:
    """Return what the numbers rest on: pairs, what was fitted on, seed, splits, intervals."""
    splits, fitting = metrics.get("splits", 1), metrics.get("fitting")
    pairs = f"{metrics['n']:,} held-out pairs"
    if not names_of(metrics).default:
        pairs += f" of {names_of(metrics).source} and {names_of(metrics).target}"
    if fitting and fitting["separate"]:
        over = "" if splits == 1 else f", the mean of {splits} fits from this seed on"
        resting = f"{pairs}, {_fitted_on(metrics)} of their own, seed {metrics['seed']}{over}."
    else:
        over = "one split" if splits == 1 else f"the mean of {splits} splits"
        if fitting:
            over += f", {_fitted_on(metrics)}"
        resting = f"{pairs}, {over}, seed {metrics['seed']}."
    note = interval_note(metrics)
    return resting + first_round(metrics) + (f" {note}." if note else "")


def exact(value: float) -> str:
    """Return a number with all its digits, nothing where there is none."""
    return repr(float(value)) if math.isfinite(value) else ""


def _fitted_on(metrics: Mapping[str, Any]) -> str:
    fitting, names = metrics["fitting"], names_of(metrics)
    images, texts = f"{fitting['images']:,}", f"{fitting['texts']:,}"
    return f"fitted on {images} {names.targets} and {texts} unpaired {names.sources}"


def _method_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    best = {metric: _best(metrics, metric) for metric in METRICS}
    names = names_of(metrics)
    rows = []
    for name, values in metrics["methods"].items():
        cells = []
        for metric in METRICS:
            value, known = values[metric], interval(metrics, name, metric)
            cells.append(
                {
                    "metric": metric,
                    "text": figure_text(value),
                    "exact": exact(value),
                    "best": name not in CONTROLS and value == best[metric],
                    "interval": "–".join(map(figure_text, known)) if known else "",
                }
            )
        rows.append(
            {
                "name": name,
                "label": method_label(name, names),
                "control": name in CONTROLS,
                "cells": cells,
            }
        )
    return rows


def _best(metrics: Mapping[str, Any], metric: str) -> float | None:
    values = [metrics["methods"][name][metric] for name in contenders(metrics)]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    return max(known) if METRICS[metric].higher_is_better else min(known)


def _meaning(key: str, names: Names) -> dict[str, str]:
    found = diagnostic(key, names)
    return {"symbol": found.symbol, "meaning": found.meaning}


def _symbols(text: str) -> Markup:
    """Return text with symbols such as M_Z set with subscripts, the rest escaped."""
    return Markup("").join(
        escape(before) + (Markup("<sub>{}</sub>").format(below) if below else "")
        for before, below in split_symbols(text)
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["symbols"] = _symbols
    return environment
