"""How far a night's text lies from its aligner's fitting text, and which limits that passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.align.base import with_prefix
from pipeline.cluster.fit import RADIAL_BINS, FitSide
from pipeline.cluster.outputs import output
from pipeline.cluster.segments import CorpusStatistics, SegmentStore, update_statistics
from pipeline.config import NightlySection, RunConfig
from pipeline.geometry.drift import Drift, RadialBins, TextStatistics, measure_drift
from pipeline.report.console import Reporter
from pipeline.storage import locations
from pipeline.storage.artifacts import read_artifact
from pipeline.storage.slices import combined


@dataclass(frozen=True)
class FittingText:
    """Statistics of the text that an aligner was fitted on; without bins, no radii."""

    statistics: TextStatistics
    bins: RadialBins | None

    @classmethod
    def of(cls, aligner: str) -> FittingText | None:
        """Return what the artifact at a URL carries, None when it was saved without."""
        _, tensors = read_artifact(aligner)
        text = with_prefix(tensors, "statistics.text.")
        if not text:
            return None
        bins = with_prefix(tensors, f"statistics.{RADIAL_BINS}.")
        return cls(
            TextStatistics.from_tensors(text), RadialBins.from_tensors(bins) if bins else None
        )


@dataclass(frozen=True)
class DriftReport:
    """Drift of the fresh text and of the whole corpus, and which thresholds they pass.

    `fresh` is None when no row is new.
    """

    fresh: Drift | None
    corpus: Drift
    exceeded: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "fresh": self.fresh.to_mapping() if self.fresh else None,
            "corpus": self.corpus.to_mapping(),
            "exceeded": list(self.exceeded),
        }


def check_drift(
    config: RunConfig,
    reference: FittingText,
    text: FitSide,
    fresh: frozenset[str],
    reporter: Reporter,
) -> tuple[DriftReport, CorpusStatistics]:
    """Measure the drift of the `fresh` units (keys), and of the corpus, from the fitting text.

    Statistics of units that were there before come from storage.

    Raises:
        ValueError: when no row of the text can be used.
    """
    folder = output(config, "statistics", "text-segments")
    bins = reference.bins
    name = combined("bins", bins.digest if bins else None, text.dimension)[:16]
    statistics = update_statistics(
        SegmentStore(locations.join(folder, name)), text, bins, fresh, reporter
    )
    for entry in locations.list_files(folder):
        if not entry.name.startswith(f"{name}/"):  # counted for an aligner of before
            locations.remove(entry.url)
    if statistics.whole is None:
        raise ValueError(f"no row of {text.corpus.shown} can be used")
    found = None
    if statistics.fresh is not None:
        found = measure_drift(reference.statistics, statistics.fresh)
    whole = measure_drift(reference.statistics, statistics.whole)
    exceeded = (
        *_exceeded(f"new {config.names.source}", found, config.nightly),
        *_exceeded("corpus", whole, config.nightly),
    )
    return DriftReport(found, whole, exceeded), statistics


def _exceeded(what: str, drift: Drift | None, limits: NightlySection) -> list[str]:
    if drift is None or drift.rows < limits.min_rows:
        return []
    measured = {
        "centroid": (drift.centroid, limits.max_centroid_drift),
        "covariance": (drift.covariance, limits.max_covariance_drift),
        "radial": (drift.radial, limits.max_radial_drift),
    }
    return [
        f"{name} of the {what} {value:.3f} (nightly.max_{name}_drift {limit:g})"
        for name, (value, limit) in measured.items()
        if value is not None and value > limit
    ]
