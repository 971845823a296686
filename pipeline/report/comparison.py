"""The comparison of several evaluations: the same methods side by side over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.names import Names
from pipeline.report.figures.drawing import look
from pipeline.report.figures.runs import draw_run_bars, draw_run_tradeoff, measured_methods
from pipeline.report.methods import CONTROLS, method_label
from pipeline.report.metrics import METRICS, diagnostic, figure_text, names_of_all, with_nan
from pipeline.report.page import exact, facts, render, write_figures, write_page
from pipeline.report.verdict import verdict


def write_comparison(runs: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Write index.html and figures of several runs side by side; returns the page's path.

    `runs` maps a run's label to {"metrics": ..., "curves": ...}. Differences are to the first run.
    Where runs are of other modalities, the sides are called source and target.
    Raises ValueError for fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(
            f"a comparison needs two runs or more, got {len(runs)}; name more run folders"
        )
    metrics = {label: with_nan(run["metrics"]) for label, run in runs.items()}
    names = names_of_all(metrics)
    with look():
        drawings = [draw_run_tradeoff(metrics), draw_run_bars(metrics)]
    html = render(
        "comparison.html",
        names,
        title=f"Comparison of {len(runs)} runs",
        runs=[
            {"label": label, "verdict": verdict(found), "facts": facts(found)}
            for label, found in metrics.items()
        ],
        methods=_method_groups(metrics, names),
        gap=_gap_rows(metrics, names),
        sections=write_figures(folder, {"Runs in pictures": drawings}),
    )
    return write_page(folder, html)


def _method_groups(metrics: Mapping[str, Mapping[str, Any]], names: Names) -> list[dict[str, Any]]:
    groups = []
    for name in measured_methods(metrics):
        measured = {label: found["methods"].get(name, {}) for label, found in metrics.items()}
        first, *_ = measured
        rows = []
        for label, values in measured.items():
            base = measured[first] if label != first else {}
            cells = [
                {
                    "metric": metric,
                    "difference": _difference(
                        values.get(metric, math.nan), base.get(metric, math.nan)
                    ),
                    **_shown(values.get(metric, math.nan)),
                }
                for metric in METRICS
            ]
            rows.append({"label": label, "cells": cells})
        groups.append(
            {
                "name": name,
                "label": method_label(name, names),
                "control": name in CONTROLS,
                "rows": rows,
            }
        )
    return groups


def _shown(value: float) -> dict[str, str]:
    return {"text": figure_text(value), "exact": exact(value)}


def _difference(value: float, base: float) -> str:
    if not math.isfinite(value - base):
        return ""
    return f"{round(value - base, 3) + 0.0:+.3f}"  # plus zero, so that there is no -0.000


def _gap_rows(metrics: Mapping[str, Mapping[str, Any]], names: Names) -> list[dict[str, Any]]:
    rows = []
    for key in dict.fromkeys(key for found in metrics.values() for key in found["gap"]):
        cells = [
            {"run": label, **_shown(found["gap"].get(key, math.nan))}
            for label, found in metrics.items()
        ]
        meant = diagnostic(key, names)
        rows.append({"key": key, "symbol": meant.symbol, "meaning": meant.meaning, "cells": cells})
    return rows
