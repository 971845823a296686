"""Runs over samples, watched: their stages, their units, their processes, what they wrote."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cluster.outputs import Side
from pipeline.cluster.run import run
from pipeline.cluster.samples import Sample, write_sample
from pipeline.cluster.watching import PeakMemory
from pipeline.config import RunConfig, parse_config
from pipeline.forecast.calibration import RowsOf
from pipeline.forecast.fitting import (
    UnitSeconds,
    WatchedRun,
    WatchedStage,
    Where,
    exclusive_seconds,
)
from pipeline.names import DEFAULT_NAMES
from pipeline.report.timing import TRAINING, Span, TimingReporter
from pipeline.storage import locations
from pipeline.storage.manifest import open_manifest

_MOST_CPUS = 16
"""On a larger cluster the runs keep so many busy, and the others idle."""
_UNITS_A_CPU = 8
_PICTURES, _CAPTIONS, _EMBEDDINGS, _LEAST = 8, 64, 256, 8
"""Rows of a unit of the first run, by what they are, and the least of any run."""
_SECONDS = 2.5
"""What workers should take for a side of the smallest run."""
_MUCH_MORE = 3
"""Where units could be so many times as large, they are measured again before the others."""
_MOST_BYTES = 512 * 2**20
_MORE_UNITS, _LARGER = 2, 3
_SETTLED_S = 2.5
"""A file that was changed just now is read again in the same run; a user's files lie long."""
_STEPS = 40
"""Training steps of each run: the others take as long."""
_IN_DRIVER = ("planning ", TRAINING)
"""How titles begin of what the driver does by itself."""
_DEVICE = frozenset({"encode", "correct"})
"""Stages of receipts that go on the device."""
_FOLDERS = ("embeddings/text", "embeddings/image", "dataset/index", "dataset")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Units of each side, and the rows of each unit."""

    units: int
    rows: Mapping[Side, int]

    @property
    def of(self) -> dict[RowsOf, tuple[int, int]]:
        """Units and rows of each side, of both, and of training, which has all there are."""
        found: dict[RowsOf, tuple[int, int]] = {
            side: (self.units, self.units * rows) for side, rows in self.rows.items()
        }
        total = self.units * sum(self.rows.values())
        return found | {"both": (self.units * len(self.rows), total), "training": (0, total)}

    def times(self, *, units: int = 1, rows: int = 1) -> Size:
        """Return a size with so many times the units, or rows in each."""
        more = {side: count * rows for side, count in self.rows.items()}
        return Size(units=self.units * units, rows=more)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was seen of a run: its seconds, stages, bytes by folder, and peaks of memory in bytes.

    `titles` are those of its stages in order, whose rows they go through, and where they work.
    """

    size: Size
    seconds: float
    run: WatchedRun
    titles: Mapping[str, tuple[RowsOf, Where]]
    bytes: Mapping[str, int]
    worker: float
    driver: float
    training_rows: int


class Measuring:
    """Runs of a configuration over samples of different sizes, each in a folder of its own."""

    def __init__(
        self, config: RunConfig, samples: Mapping[Side, Sample], folder: str, cpus: int
    ) -> None:
        self._config, self._samples, self._folder = config, samples, folder
        self._cpus = min(cpus, _MOST_CPUS)
        self._numbers = itertools.count(1)
        self.dimension = 1

    def row_bytes(self, side: Side) -> float:
        """Return the bytes of a row in a worker: what is read, and its embedding as float32."""
        if side not in self._samples:
            return 0.0
        sample = self._samples[side]
        return sample.row_bytes + (0.0 if sample.dimension else 4.0 * self.dimension)

    def unit_bytes(self, size: Size) -> float:
        """Return the bytes of the largest unit in a worker."""
        return max(self.row_bytes(side) * rows for side, rows in size.rows.items())

    def cold_and_warm(self, progress: Progress) -> tuple[Watched, list[Watched]]:
        """Return the first run, whose processes had to start, and those to compare.

        Three of these: a small one, one of twice the units, and one of units thrice as large.
        """
        first = {side: self._first_rows(sample) for side, sample in self._samples.items()}
        size = self._size(_UNITS_A_CPU * self._cpus, first)
        cold = self._watched(size)
        progress(1, 4)
        small = self._watched(self._sized(cold))
        size = self._sized(small)
        if any(size.rows[side] > _MUCH_MORE * rows for side, rows in small.size.rows.items()):
            small = self._watched(size)  # the first units were too small to tell
        size = small.size
        progress(2, 4)
        more = self._watched(size.times(units=_MORE_UNITS))
        progress(3, 4)
        larger = self._watched(size.times(rows=_LARGER))
        progress(4, 4)
        return cold, [small, more, larger]

    def _first_rows(self, sample: Sample) -> int:
        if sample.dimension:
            return min(_EMBEDDINGS, self._config.units.rows_per_shard)
        text = sample.corpus.modality == "text"
        return _CAPTIONS if text else _PICTURES

    def _sized(self, before: Watched) -> Size:
        """Return a size that takes about as long as wanted, by what was seen before."""
        units, rows = before.size.units, dict[Side, int]()
        for side, sample in self._samples.items():
            wanted = _SECONDS * self._cpus / self._row_seconds(before, side) / units
            held = _MOST_BYTES / (max(self.row_bytes(side), 1.0) * units * _LARGER)
            # Never past what the real units have.
            whole = self._rows_per_unit(sample) / _LARGER
            rows[side] = max(_LEAST, int(min(wanted, held, whole)))
        return self._size(units, rows)

    def _size(self, units: int, rows: Mapping[Side, int]) -> Size:
        if "image" in rows and self._samples["image"].dimension:
            # One key of the configuration cuts both sides then.
            least = min(rows.values()) if self._samples["text"].dimension else rows["text"]
            rows = dict.fromkeys(rows, least)
        return Size(units=units, rows=rows)

    def _rows_per_unit(self, sample: Sample) -> int:
        section = self._config.units
        if sample.corpus.modality == "image" and not sample.dimension:
            return section.images_per_shard
        return section.rows_per_shard

    def _row_seconds(self, watched: Watched, side: Side) -> float:
        """Return the least seconds of a worker for a row of a side, all stages together.

        What measures embeddings has no receipts; it takes longer than reading them.
        """
        stages = [
            (where, watched.run.stages[title].units)
            for title, (rows_of, where) in watched.titles.items()
            if rows_of == side
        ]
        found = [
            min((one.device + one.cpu) / max(one.rows, 1) for one in units)
            for where, units in stages
            if where == "units"
        ]
        every = [one for stage in watched.run.stages.values() for one in stage.units]
        reading = min(one.cpu / max(one.rows, 1) for one in every)
        return max(sum(found) + 2 * reading * sum(where == "tasks" for where, _ in stages), 1e-7)

    def _watched(self, size: Size) -> Watched:
        """Run over so much of the samples; raises ValueError as the run does."""
        place = locations.join(self._folder, f"run-{next(self._numbers)}")
        config = self._configured(place, size)
        units: dict[str, list[UnitSeconds]] = defaultdict(list)

        def observe(event: str, fields: Mapping[str, Any]) -> None:
            if event == "unit_written":
                units[fields["name"]].append(_unit_seconds(fields["rows"], fields["seconds"]))

        reporter = TimingReporter()
        with PeakMemory() as memory, reporter.observed_by(observe):
            time.sleep(_SETTLED_S)
            start = time.perf_counter()
            run(config, reporter)
            stop = time.perf_counter()
        self.dimension = open_manifest(f"{config.output.path}/dataset").dimension
        stages, titles = _stages(reporter.spans, units, start, stop)
        return Watched(
            size=size,
            seconds=stop - start,
            run=WatchedRun(sizes=size.of, stages=stages),
            titles=titles,
            bytes=_bytes(config.output.path),
            worker=memory.worker,
            driver=memory.driver,
            training_rows=config.train.max_rows,
        )

    def _configured(self, place: str, size: Size) -> RunConfig:
        """Write the samples and return the configuration of a run over them."""
        values = self._config.to_mapping()
        for side, rows in size.rows.items():
            sample = self._samples[side]
            written = write_sample(sample, f"{place}/corpora/{side}", size.units, rows)
            values[side] |= written
            if sample.format == "dataset":
                values["rejects"]["check_ids"] = False  # its ids were checked when it was written
        pictures = "image" in size.rows and not self._samples["image"].dimension
        values["units"]["rows_per_shard"] = size.rows["text"]
        values["units"]["images_per_shard"] = size.rows["image"] if pictures else 1
        values["output"]["path"] = f"{place}/output"
        values["names"] = asdict(DEFAULT_NAMES)  # `_rows_of` looks for them in the titles
        values["rejects"]["max_share"] = 1.0
        for name in ("prior", "refiner"):
            values["align"][name]["steps"] = min(_STEPS, values["align"][name]["steps"])
        return parse_config(values)


def _unit_seconds(rows: int, seconds: Mapping[str, float]) -> UnitSeconds:
    device = sum(spent for stage, spent in seconds.items() if stage in _DEVICE)
    return UnitSeconds(rows=rows, device=device, cpu=sum(seconds.values()) - device)


def _stages(
    spans: Sequence[Span], units: Mapping[str, Sequence[UnitSeconds]], start: float, stop: float
) -> tuple[dict[str, WatchedStage], dict[str, tuple[RowsOf, Where]]]:
    """Return a run's stages by title, what is of the same title and side as one."""
    times = exclusive_seconds([(span.start, span.stop) for span in spans], start, stop)
    sides = [_rows_of(spans[index:]) for index in range(len(spans))]
    several = {
        span.title
        for span, side in zip(spans, sides, strict=True)
        for other, theirs in zip(spans, sides, strict=True)
        if span.title == other.title and side != theirs
    }
    stages: dict[str, WatchedStage] = {}
    titles: dict[str, tuple[RowsOf, Where]] = {}
    for span, side, (inside, after) in zip(spans, sides, times, strict=True):
        title = f"{span.title} ({side})" if span.title in several else span.title
        before = stages.get(title, WatchedStage(inside=0.0, after=0.0, driver=0.0))
        stages[title] = WatchedStage(
            inside=before.inside + inside,
            after=before.after + after,
            driver=before.driver + span.processor,
            units=tuple(units.get(span.title, ())),
            steps=span.steps,
            step=span.step_seconds,
        )
        where: Where = "units" if span.title in units else "tasks"
        titles[title] = (side, "driver" if span.title.startswith(_IN_DRIVER) else where)
    return stages, titles


def _rows_of(spans: Sequence[Span]) -> RowsOf:
    """Return whose rows the first of these stages goes through: the first side that is named."""
    if spans[0].title.startswith(TRAINING):
        return "training"
    for span in spans:
        named: list[RowsOf] = [side for side in ("image", "text") if side in span.title]
        if named:
            return "both" if len(named) > 1 else named[0]
    return "text"


def _bytes(output: str) -> dict[str, int]:
    """Return how much a run wrote, by folder; `index` is that of the dataset."""
    found: dict[str, int] = {}
    for entry in locations.list_files(output):
        folder = next((one for one in _FOLDERS if entry.name.startswith(f"{one}/")), None)
        if folder is not None:
            name = folder.removeprefix("dataset/")
            found[name] = found.get(name, 0) + entry.size
    return found
