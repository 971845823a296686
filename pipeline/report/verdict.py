"""The sentence on top of the report: which method wins where, ties said as ties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.methods import contenders, method_label
from pipeline.report.metrics import (
    METRICS,
    figure_text,
    interval,
    mixing,
    mixing_interval,
    names_of,
    with_nan,
)

KEPT_SHARE = 0.9
"""Share of the best neighbourhood overlap that a method must keep to count as careful."""

_MOST_NAMED = 4


def verdict(metrics: Mapping[str, Any]) -> str:
    """Return one sentence: who mixes best, who keeps the source's geometry, who retrieves best.

    Two methods tie where their 95 % intervals overlap; without intervals, where they agree to
    three digits. Controls never win, nor do methods whose figure is None or NaN.
    """
    metrics = with_nan(metrics)
    sides = names_of(metrics)
    names = contenders(metrics)
    if not names:
        return "Only controls were measured, so no method wins."
    if len(names) == 1:
        figures = _figures(metrics, names, ("m_z", "m_x", "omega", "retrieval_r1"))
        return f"{_spoken(metrics, names[0])} ({figures}) was measured beside controls alone."
    mixes = _leaders(metrics, names, "mixing")
    clauses = [
        _clause(
            metrics,
            mixes,
            names,
            f"mixes best with the {sides.targets}",
            f"the best mixing with the {sides.targets}",
            ("m_z", "m_x"),
        )
    ]
    careful = _careful(metrics, names)
    careful_mixes = _leaders(metrics, careful, "mixing")
    if set(careful_mixes) != set(mixes):
        kept = f"among those that keep {100 * KEPT_SHARE:.0f} % or more of the best Ω, "
        clauses.append(
            kept
            + _clause(metrics, careful_mixes, careful, "does", "the best mixing", ("m_z", "m_x"))
        )
    for metric, verb, subject, shown in (
        (
            "omega",
            f"keeps most of the {sides.sources}' geometry",
            f"keeping most of the {sides.sources}' geometry",
            ("omega", "psi"),
        ),
        (
            "retrieval_r1",
            f"finds the paired {sides.one_target} most often",
            f"finding the paired {sides.one_target} most often",
            ("retrieval_r1",),
        ),
    ):
        leaders = _leaders(metrics, names, metric)
        clauses.append(_clause(metrics, leaders, names, verb, subject, shown))
    sentence = "; ".join(clauses)
    if not metrics.get("intervals"):
        sentence += " (no intervals were measured, so a small lead may be chance)"
    return sentence[:1].upper() + sentence[1:] + "."


def _standing(metrics: Mapping[str, Any], name: str, metric: str) -> tuple[float, float, float]:
    values = metrics["methods"][name]
    if metric == "mixing":
        value = mixing(values["m_z"], values["m_x"])
        known = mixing_interval(metrics, name)
    else:
        value = values[metric]
        known = interval(metrics, name, metric)
    low, high = known or (round(value, 3), round(value, 3))
    return value, low, high


def _leaders(metrics: Mapping[str, Any], names: Sequence[str], metric: str) -> list[str]:
    """Return the best method and all that tie with it, best first."""
    standings = {name: _standing(metrics, name, metric) for name in names}
    standings = {name: found for name, found in standings.items() if math.isfinite(found[0])}
    ranked = sorted(standings, key=lambda name: -standings[name][0])
    return [name for name in ranked if standings[name][2] >= standings[ranked[0]][1]]


def _careful(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the methods that keep enough of the best neighbourhood overlap."""
    kept = {name: metrics["methods"][name]["omega"] for name in names}
    best = max((value for value in kept.values() if math.isfinite(value)), default=0.0)
    return [name for name, value in kept.items() if value >= KEPT_SHARE * best]


def _clause(
    metrics: Mapping[str, Any],
    leaders: Sequence[str],
    field: Sequence[str],
    verb: str,
    subject: str,
    shown: Sequence[str],
) -> str:
    if not leaders:
        return f"no method has a figure for {subject}"
    figures = _figures(metrics, leaders, shown)
    if len(leaders) == 1:
        return f"{_spoken(metrics, leaders[0])} {verb} ({figures})"
    who = f"all {len(leaders)}" if len(leaders) == len(field) else _listing(metrics, leaders)
    return f"{who} tie for {subject} ({figures})"


def _spoken(metrics: Mapping[str, Any], name: str) -> str:
    """Return a method's label without the comma that would part it in a listing."""
    method, _, variant = method_label(name, names_of(metrics)).partition(", ")
    return f"{method} ({variant})" if variant else method


def _listing(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    labels = [_spoken(metrics, name) for name in names]
    if len(labels) > _MOST_NAMED:
        labels = [*labels[: _MOST_NAMED - 1], f"{len(labels) - _MOST_NAMED + 1} others"]
    return ", ".join(labels[:-1]) + " and " + labels[-1]


def _figures(metrics: Mapping[str, Any], names: Sequence[str], shown: Sequence[str]) -> str:
    parts = []
    for metric in shown:
        values = [metrics["methods"][name][metric] for name in names]
        known = [value for value in values if math.isfinite(value)] or [math.nan]
        low, high = figure_text(min(known)), figure_text(max(known))
        parts.append(f"{METRICS[metric].symbol} {low if low == high else f'{low} to {high}'}")
    return ", ".join(parts)
