"""Our work timed against a baseline, in turns, so that a noisy machine slows both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rates:
    """Rows (ids, captions) a second, of ours and of the baseline, one for each repetition."""

    ours: tuple[float, ...]
    baseline: tuple[float, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return medians, their ratio, and the extremes of ours."""
        value, baseline = statistics.median(self.ours), statistics.median(self.baseline)
        return {
            "value": value,
            "baseline": baseline,
            "ratio": value / baseline,
            "spread": [min(self.ours), max(self.ours)],
        }


def step_counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """Return what to call after each of `total` steps; it tells `progress` (steps done, total)."""
    steps = iter(range(1, total + 1))

    def done() -> None:
        if progress is not None:
            progress(next(steps), total)

    return done


def rate(count: int, work: Callable[[], object]) -> float:
    """Return how much of `count` work does a second."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def in_turns(
    ours: tuple[int, Callable[[], object]],
    baseline: tuple[int, Callable[[], object]],
    repeats: int,
    done: Callable[[], None] = lambda: None,
) -> Rates:
    """Time both, given as (count, work), `repeats` times in turns, after one of each unseen."""
    for _, work in (ours, baseline):
        work()
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        found.append((rate(*ours), rate(*baseline)))
        done()
    mine, theirs = zip(*found, strict=True)
    return Rates(mine, theirs)
