"""The table of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "identity": "Text (identity)",
    "centroid": "Centroid",
    "realign": "ReAlign",
    "anisoalign-init": "AnisoAlign, init only",
    "anisoalign": "AnisoAlign",
}
"""Methods as people know them."""


def table_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of methods, figures to three digits."""
    return [
        [TABLE_NAMES[name], *(f"{values[metric]:.3f}" for metric in TABLE_METRICS)]
        for name, values in metrics["methods"].items()
    ]
