"""Methods as people know them, and the table of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.names import DEFAULT_NAMES, Names
from pipeline.report.metrics import names_of, names_of_all

TABLE_METRICS = {
    "delta_mu": "delta_mu",
    "m_z": "M_Z",
    "m_x": "M_X",
    "phi": "Phi",
    "psi": "Psi",
    "omega": "Omega",
    "a_r": "A_r",
    "retrieval_r1": "R@1",
}
"""Metrics shown in tables, with their headings."""

TABLE_NAMES = {
    "identity": "{Source} (identity)",
    "centroid": "Centroid",
    "moment": "Moment match",
    "permuted": "Permuted {others}",
    "oracle": "Oracle (uses pairs)",
    "c3": "C3",
    "unicorn": "Unicorn",
    "realign": "ReAlign",
    "bures-block": "Bures by block",
    "bures-subspace": "Bures on subspace",
    "bures-gromov": "Bures-Gromov",
    "anisoalign-radial": "AnisoAlign, radial start",
    "anisoalign-init": "AnisoAlign, init only",
    "anisoalign-refine": "AnisoAlign, no losses",
    "anisoalign-prior": "AnisoAlign, prior only",
    "anisoalign-phase": "AnisoAlign, phase only",
    "anisoalign": "AnisoAlign",
}
"""Methods as people know them; the sides have their own names."""

CONTROLS = ("identity", "permuted", "oracle")
"""Methods that bound the others (no alignment, no source, pairs used) and so never win."""


def method_label(name: str, names: Names = DEFAULT_NAMES) -> str:
    """Return a method as people know it; a name that is not in the table stands for itself."""
    label = TABLE_NAMES.get(name)
    if label is None:
        return name
    others = names.targets.removesuffix(" embeddings")  # it has to be short
    return label.format(Source=names.source.capitalize(), others=others)


def contenders(metrics: Mapping[str, Any]) -> list[str]:
    """Return the measured methods that can win, without the controls."""
    return [name for name in metrics["methods"] if name not in CONTROLS]


def table_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of methods, figures to three digits."""
    sides = names_of(metrics)
    return [
        [method_label(name, sides), *_figures(values)]
        for name, values in metrics["methods"].items()
    ]


def run_rows(runs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of several runs: method, run, figures to three digits."""
    sides = names_of_all(runs)
    names = dict.fromkeys(name for metrics in runs.values() for name in metrics["methods"])
    return [
        [method_label(name, sides), label, *_figures(values)]
        for name in names
        for label, metrics in runs.items()
        if (values := metrics["methods"].get(name))
    ]


def _figures(values: Mapping[str, float | None]) -> list[str]:
    shown = (values[metric] for metric in TABLE_METRICS)
    return ["–" if value is None or not math.isfinite(value) else f"{value:.3f}" for value in shown]
