"""Units through stages: those that fail are named, tried again, and do not stop the others."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.cluster.attempts import CountedAttempts, counted_attempts
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.stages.envelope import Failure
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.locations import UnwritableError
from pipeline.storage.receipts import source_of

_NAMED_FAILURES = 5
PAUSES_S = (5.0, 60.0)
"""Seconds before failed units are tried again: the first time, and every later time."""

Row = Mapping[str, Any]
Execution = Callable[[Sequence[Unit], CountedAttempts], Iterable[Row]]
"""Takes units through stages; a row names its `unit` (key) and its `failure` (JSON, or null)."""


class UnitFlow:
    """The units of a corpus on their way, and those that fail again and again."""

    def __init__(
        self, config: RunConfig, name: str, corpus: Corpus, units: int, reporter: Reporter
    ) -> None:
        self._limit = config.units.max_attempts
        self._name, self._corpus, self._total = name, corpus, units
        self._reporter = reporter
        self._units: dict[str, Unit] = {}
        self._tries: Counter[str] = Counter()
        self._failures: dict[str, Failure] = {}

    @property
    def retried(self) -> int:
        """Number of units that failed at first and were tried again."""
        return len(self._tries)

    @property
    def failed(self) -> frozenset[str]:
        """Keys of the units that failed for good."""
        return frozenset(self._failures)

    def run(self, units: Sequence[Unit], execute: Execution) -> Iterator[Row]:
        """Yield the rows of units as they come, in any order; failed units are tried again.

        Raises:
            UnwritableError: when the output takes no file; what was written is kept.
        """
        self._units.update((unit.key, unit) for unit in units)
        pending = list(units)
        rounds = 0
        with counted_attempts(self._limit) as attempts:
            while pending:
                if rounds:
                    self._pause(len(pending), PAUSES_S[0 if rounds == 1 else 1])
                rounds += 1
                failed: list[Unit] = []
                for row in execute(pending, attempts):
                    key = row["unit"]
                    if row["failure"] is None:
                        self._failures.pop(key, None)
                        yield row
                        continue
                    failure = Failure(**json.loads(row["failure"]))
                    if failure.unwritable:
                        # Told by a row, not by an exception: Ray Data strips those of their cause.
                        raise UnwritableError(failure.reason)
                    self._tries[key] += failure.attempts
                    self._failures[key] = failure
                    failed.append(self._units[key])
                pending = [unit for unit in failed if self._tries[unit.key] < self._limit]
                for unit in failed:
                    self._say_failed(unit, again=self._tries[unit.key] < self._limit)

    def _pause(self, units: int, seconds: float) -> None:
        """Wait: what fails several units in a row, a store that is away, often passes."""
        many = "1 unit" if units == 1 else f"{units} units"
        self._reporter.say(f"{many} failed; trying again in {seconds:g} s")
        time.sleep(seconds)

    def check(self) -> None:
        """Raise ValueError naming the units that failed for good."""
        if not self._failures:
            return
        named = [
            f"{_place(self._units[key])} ({failure.stage}: {failure.reason})"
            for key, failure in list(self._failures.items())[:_NAMED_FAILURES]
        ]
        more = len(self._failures) - len(named)
        raise ValueError(
            f"{len(self._failures)} of {self._total} units of {self._corpus.shown} failed, with "
            f"units.max_attempts={self._limit}: {'; '.join(named)}"
            + (f"; and {more} more" if more else "")
            + "; the others are written and kept: mend what is named and run it again"
        )

    def _say_failed(self, unit: Unit, *, again: bool) -> None:
        failure = self._failures[unit.key]
        self._reporter.event(
            "unit_retried" if again else "unit_failed",
            level="warning" if again else "error",
            name=self._name,
            unit=unit.key,
            place=_place(unit),
            stage=failure.stage,
            reason=failure.reason,
            attempts=self._tries[unit.key],
            added_attempts=failure.attempts,
        )
        if again:
            self._reporter.say(f"{_place(unit)} failed ({failure.stage}: {failure.reason})")


def _place(unit: Unit) -> str:
    source = source_of(unit)
    return f"{source['path']} rows {source['start']} to {source['stop']}"
