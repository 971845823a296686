"""Statistics of a text corpus kept night by night: a state for each few units, merged when asked.

A night reads only the units that came, and those that stood in one segment with a unit that went.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.cluster.fit import FitSide
from pipeline.cluster.reductions import reduce_each
from pipeline.geometry.drift import RadialBins, TextStatistics
from pipeline.report.console import Reporter
from pipeline.stages.accumulate import MeasureText
from pipeline.storage import locations
from pipeline.storage.artifacts import (
    DamagedArtifactError,
    MissingArtifactError,
    read_artifact,
    write_artifact,
)
from pipeline.storage.corpus import Unit
from pipeline.storage.slices import combined

UNITS_PER_SEGMENT = 64
"""What a vanished unit makes be read again, at most; a state is 13 MB at d = 1280."""
_READERS = 4


@dataclass(frozen=True, eq=False)
class Segment:
    """A stored state and the units (keys) and rows it stands for; None where no row was usable."""

    units: frozenset[str]
    rows: int
    rejected: int
    state: TextStatistics | None


@dataclass(frozen=True)
class CorpusStatistics:
    """Statistics of all units of a corpus, and of the fresh ones alone; `rejected` is of all."""

    whole: TextStatistics | None
    fresh: TextStatistics | None
    rejected: int
    units_read: int


class SegmentStore:
    """The segments of one corpus in a folder: artifacts named by their units."""

    def __init__(self, root: str) -> None:
        self.root = root

    def load(self) -> list[Segment]:
        """Return the segments that are whole, in order of name; half-written ones don't count.

        Raises:
            ValueError: when the store fails.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(self._load, self._names())
            return [segment for segment in found if segment is not None]

    def _load(self, name: str) -> Segment | None:
        try:
            config, tensors = read_artifact(locations.join(self.root, name))
        except (MissingArtifactError, DamagedArtifactError):
            return None
        units = frozenset(config["units"])
        state = TextStatistics.from_tensors(tensors) if tensors else None
        return Segment(units, config["rows"], config["rejected"], state)

    def add(self, segment: Segment) -> None:
        """Store a segment."""
        config = {
            "units": sorted(segment.units),
            "rows": segment.rows,
            "rejected": segment.rejected,
        }
        tensors = segment.state.tensors() if segment.state else {}
        write_artifact(locations.join(self.root, _name(segment.units)), config, tensors)

    def keep_only(self, segments: Sequence[Segment]) -> None:
        """Delete every other segment."""
        kept = {_name(segment.units) for segment in segments}
        for entry in locations.list_files(self.root):
            if entry.name.split("/")[0] not in kept:
                locations.remove(entry.url)

    def _names(self) -> list[str]:
        entries = [entry.name.split("/")[0] for entry in locations.list_files(self.root)]
        return sorted(set(entries))


def update_statistics(
    store: SegmentStore,
    text: FitSide,
    bins: RadialBins | None,
    fresh: Collection[str],
    reporter: Reporter,
) -> CorpusStatistics:
    """Bring a store up to a corpus and return its statistics, and those of the `fresh` units.

    `bins` have to be those that the store's segments were counted by. A segment counts as it is if
    all its units are there still, and all fresh or none.

    Raises:
        ValueError: when a unit cannot be read.
    """
    units = {unit.key: unit for unit in text.plan.units}
    usable: list[Segment] = []
    covered: set[str] = set()
    for segment in store.load():
        wanted = segment.units <= units.keys()
        mixed = 0 < len(segment.units & set(fresh)) < len(segment.units)
        if wanted and not mixed and covered.isdisjoint(segment.units):
            usable.append(segment)
            covered |= segment.units
    missing = [unit for key, unit in units.items() if key not in covered]
    counted = _count(text, bins, fresh, missing, reporter)
    kept, replaced = _merged_small([*usable, *counted], set(fresh))
    for segment in kept:
        if segment in counted or segment in replaced:
            store.add(segment)
    store.keep_only(kept)
    kept = sorted(kept, key=lambda segment: _name(segment.units))
    return CorpusStatistics(
        whole=_total(kept),
        fresh=_total([segment for segment in kept if segment.units <= set(fresh)]),
        rejected=sum(segment.rejected for segment in kept),
        units_read=len(missing),
    )


def _count(
    text: FitSide,
    bins: RadialBins | None,
    fresh: Collection[str],
    missing: Sequence[Unit],
    reporter: Reporter,
) -> list[Segment]:
    """Read units and return their segments, fresh units and others apart."""
    if not missing:
        return []
    ordered = sorted(missing, key=lambda unit: unit.key)
    parts = [
        part
        for chosen in (
            [unit for unit in ordered if unit.key in fresh],
            [unit for unit in ordered if unit.key not in fresh],
        )
        for part in _batches(chosen)
    ]
    reduced = reduce_each(
        text.corpus,
        parts,
        text.dimension,
        MeasureText(bins),
        title=f"statistics of the new {text.corpus.name}",
        reporter=reporter,
    )
    return [
        Segment(frozenset(unit.key for unit in part), one.rows, one.rejected, one.state)
        for part, one in zip(parts, reduced, strict=True)
    ]


def _batches(units: Sequence[Unit]) -> Iterator[Sequence[Unit]]:
    for start in range(0, len(units), UNITS_PER_SEGMENT):
        yield units[start : start + UNITS_PER_SEGMENT]


def _merged_small(
    segments: Sequence[Segment], fresh: Collection[str]
) -> tuple[list[Segment], list[Segment]]:
    """Merge small segments of earlier nights; returns all segments, and the merged ones among them.

    A year of small nights would otherwise be hundreds of states to read. Fresh segments stay by
    themselves until they are old, since their own statistics are asked for.
    """
    kept = [s for s in segments if s.units & set(fresh) or 2 * len(s.units) > UNITS_PER_SEGMENT]
    small = [segment for segment in segments if segment not in kept]
    merged: list[Segment] = []
    pending: list[Segment] = []
    for segment in sorted(small, key=lambda one: _name(one.units)):
        if sum(len(one.units) for one in pending) + len(segment.units) > UNITS_PER_SEGMENT:
            merged.append(_merge(pending))
            pending = []
        pending.append(segment)
    if pending:
        merged.append(_merge(pending))
    return [*kept, *merged], [segment for segment in merged if segment not in small]


def _merge(segments: Sequence[Segment]) -> Segment:
    if len(segments) == 1:
        return segments[0]
    return Segment(
        units=frozenset[str]().union(*(segment.units for segment in segments)),
        rows=sum(segment.rows for segment in segments),
        rejected=sum(segment.rejected for segment in segments),
        state=_total(segments),
    )


def _total(segments: Sequence[Segment]) -> TextStatistics | None:
    total: TextStatistics | None = None
    for segment in segments:
        if segment.state is not None:
            total = segment.state if total is None else total.merge(segment.state)
    return total


def _name(units: Collection[str]) -> str:
    return combined("segment", *sorted(units))[:32]
