"""What each metric is called, which way is better, and what it says in plain words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.names import DEFAULT_NAMES, EITHER, Names


@dataclass(frozen=True)
class Metric:
    """A metric of a method: its symbol, its name, whether higher is better, its meaning."""

    symbol: str
    name: str
    higher_is_better: bool
    meaning: str


@dataclass(frozen=True)
class Diagnostic:
    """A number about the gap before alignment: its symbol and its meaning."""

    symbol: str
    meaning: str


def described_metrics(names: Names) -> dict[str, Metric]:
    """Return every metric of a method, in the order of the page's table, said of these sides."""
    source, sources, target, targets = (
        names.one_source,
        names.sources,
        names.one_target,
        names.targets,
    )
    own = "caption" if names.default else source
    return {
        "delta_mu": Metric(
            "δ_μ",
            "centroid distance",
            False,
            f"Distance between the centre of the substitutes and the centre of the {targets}; 0 "
            "when they coincide.",
        ),
        "m_z": Metric(
            "M_Z",
            "mixing around substitutes",
            True,
            f"How well {targets} and substitutes mix among the nearest neighbours of a substitute: "
            "0 when it sees its own kind alone, 1 when the two cannot be told apart.",
        ),
        "m_x": Metric(
            "M_X",
            f"mixing around {targets}",
            True,
            f"The same among the nearest neighbours of each {target}; low when {targets} have no "
            "substitutes close by.",
        ),
        "phi": Metric(
            "Φ",
            f"{names.source} cosine",
            True,
            f"Mean cosine between each {source} and its substitute; 1 when nothing moved.",
        ),
        "psi": Metric(
            "Ψ",
            "similarity correlation",
            True,
            f"Correlation of the similarities between {sources} with those between their "
            f"substitutes; 1 when the relations of all {sources} are kept.",
        ),
        "omega": Metric(
            "Ω",
            "neighbourhood overlap",
            True,
            f"Mean share of the nearest {sources} of each {source} that are still nearest once "
            "moved; 1 when every neighbourhood is kept.",
        ),
        "a_r": Metric(
            "A_r",
            "residual anisotropy",
            False,
            f"Largest eigenvalue of the residual ({target} minus substitute) over the mean one; 1 "
            "when what is left points nowhere in particular.",
        ),
        "retrieval_r1": Metric(
            "R@1",
            "retrieval at 1",
            True,
            f"Share of substitutes whose nearest {target} is their own.",
        ),
        "retrieval_r5": Metric(
            "R@5",
            "retrieval at 5",
            True,
            f"Share of substitutes with their own {target} among the five nearest.",
        ),
        "retrieval_r10": Metric(
            "R@10",
            "retrieval at 10",
            True,
            f"Share of substitutes with their own {target} among the ten nearest.",
        ),
        "paired_cosine": Metric(
            "cos",
            "paired cosine",
            True,
            f"Mean cosine between each {target} and the substitute of its own {own}.",
        ),
    }


METRICS = described_metrics(DEFAULT_NAMES)
"""Symbols and directions of every metric; names and meanings are said by `described_metrics`."""


def _diagnostics(names: Names) -> dict[str, Diagnostic]:
    return {
        "c_lambda": Diagnostic(
            "C_λ",
            "Correlation of the log eigenvalues of both modalities: near 1 when their spectra have "
            "the same shape.",
        ),
        "g_mu": Diagnostic("G_μ", "Distance between the two centres."),
        "g_sigma": Diagnostic(
            "G_Σ", f"Distance between the two covariances, relative to that of the {names.targets}."
        ),
        "pair_distance": Diagnostic(
            "mean ‖x−y‖",
            f"Mean distance between each {names.one_target} and its own {names.one_source}, before "
            "anything moves.",
        ),
        "residual_norm": Diagnostic(
            "D", "Mean length of what separates a pair once both centres are removed."
        ),
        "residual_ratio": Diagnostic(
            "D / mean ‖x−y‖",
            "Share of a pair's distance that is left once both centres are removed.",
        ),
        "a_r": Diagnostic(
            "A_r",
            "Anisotropy of that residual: largest eigenvalue over the mean one; 1 if isotropic.",
        ),
        "d_eff": Diagnostic("d_eff", "Effective number of dimensions of the residual."),
        "d_eff_share": Diagnostic("d_eff / d", "The same as a share of all dimensions."),
        "eta_u": Diagnostic("η_U", "Share of the residual inside the dominant joint subspace."),
    }


_LADDER = {
    "o": ("O", "Overlap of both modalities' main directions, the first {size} of each."),
    "chance": ("chance", "The same overlap by chance, of random directions."),
    "e": ("E", "Share of the residual in its main directions, the first {size}."),
}
_SYMBOLS = re.compile(r"(?<![\w@])(M|O|E|C|G|A|d|δ|η|chance)_(Z|X|r|q|eff|λ|μ|Σ|U|\d+)(?![\w@])")


def names_of(metrics: Mapping[str, Any]) -> Names:
    """Return what the sides of an evaluation are called; raises ValueError for what are no names.

    Metrics of earlier releases say nothing of them and are of text and image.
    """
    return Names.from_mapping(metrics.get("names"))


def names_of_all(runs: Mapping[str, Mapping[str, Any]]) -> Names:
    """Return what the sides of all runs are called: source and target, where runs differ."""
    found = {names_of(metrics) for metrics in runs.values()}
    return found.pop() if len(found) == 1 else EITHER


def diagnostic(key: str, names: Names = DEFAULT_NAMES) -> Diagnostic:
    """Return what a key of the gap means; `o_13`, `chance_13` and `e_13` speak of 13 directions."""
    known = _diagnostics(names)
    if key in known:
        return known[key]
    kind, _, size = key.partition("_")
    if kind in _LADDER and size.isdecimal():
        symbol, meaning = _LADDER[kind]
        return Diagnostic(f"{symbol}_{size}", meaning.format(size=size))
    return Diagnostic(key, "")


def split_symbols(text: str) -> list[tuple[str, str]]:
    """Return text as pieces (plain, subscript): "by M_Z" is [("by M", "Z"), ("", "")]."""
    pieces: list[tuple[str, str]] = []
    end = 0
    for match in _SYMBOLS.finditer(text):
        pieces.append((text[end : match.end(1)], match.group(2)))
        end = match.end()
    return [*pieces, (text[end:], "")]


def mixing(m_z: float, m_x: float) -> float:
    """Return the harmonic mean of M_Z and M_X: low as soon as one of them is."""
    both = m_z + m_x
    return 2 * m_z * m_x / both if both else 0.0


def interval(metrics: Mapping[str, Any], name: str, metric: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a method's metric, None where none was measured."""
    found = metrics.get("intervals", {}).get(name, {}).get(metric)
    if found is None or not all(map(math.isfinite, found)):
        return None
    return float(found[0]), float(found[1])


def mixing_interval(metrics: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Return the range of `mixing` over the intervals of M_Z and M_X."""
    first, second = interval(metrics, name, "m_z"), interval(metrics, name, "m_x")
    if first is None or second is None:
        return None
    return mixing(first[0], second[0]), mixing(first[1], second[1])


def interval_note(metrics: Mapping[str, Any]) -> str:
    """Return what the intervals are; empty where none were measured."""
    kind, splits = metrics.get("interval_kind"), metrics.get("splits", 1)
    if not metrics.get("intervals"):
        return ""
    if kind == "splits":
        return f"95 % intervals, Student's t over {splits} splits that share pairs"
    if kind == "pairs":
        note = "95 % intervals, bootstrap over the held-out pairs with neighbourhoods held fixed"
        ends = "" if splits == 1 else f", ends averaged over {splits} fits"
        return f"{note} ({metrics['resamples']} resamples{ends})"
    return "95 % intervals"


def first_round(metrics: Mapping[str, Any], *, what: str = "Curves", of_fit: bool = True) -> str:
    """Return a sentence that `what` is of the first split or fit; empty where there is but one.

    What no fit has part in (`of_fit` false) is the same for all fits on the same clouds.
    """
    if metrics.get("splits", 1) == 1:
        return ""
    separate = (metrics.get("fitting") or {}).get("separate", False)
    if separate and not of_fit:
        return ""
    kind = "fit" if separate else "split"
    return f" {what} are of the first {kind}, seed {metrics['seed']}."


def with_nan(values: Any) -> Any:
    """Return values read from JSON with NaN for null, which stands for what is not finite."""
    if values is None:
        return math.nan
    if isinstance(values, Mapping):
        return {key: with_nan(value) for key, value in values.items()}
    return [with_nan(value) for value in values] if isinstance(values, list | tuple) else values


def figure_text(value: float) -> str:
    """Return a number to three digits after the point, one from ten on; – where there is none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
