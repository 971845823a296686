"""A reporter that shows nothing and remembers how long each stage of a run took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.report.console import Advance, Reporter

TRAINING = "training"
"""What the titles of training stages begin with."""


@dataclass
class Span:
    """A stage of a run by its title, from and to a time of `time.perf_counter`.

    `processor` are processor seconds of this process meanwhile. `steps` are those of a training
    stage, and `stepping` the seconds between its first and last.
    """

    title: str
    start: float
    stop: float = 0.0
    processor: float = 0.0
    steps: int = 0
    stepping: float = 0.0

    @property
    def step_seconds(self) -> float:
        """Seconds of a training step, 0 where there were not two."""
        return self.stepping / (self.steps - 1) if self.steps > 1 else 0.0


class TimingReporter(Reporter):
    """Shows nothing; `spans` are the stages in the order in which they began."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.spans: list[Span] = []

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Time what is inside; yields a function that counts nothing."""
        del total
        with self._timed(title):
            yield lambda count: None

    @contextmanager
    def counted(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Time what is inside; yields a function that counts nothing."""
        with self._timed(title):
            yield lambda done, total: None

    @contextmanager
    def training(self) -> Iterator[Callable[[str, int, int, float], None]]:
        """Time each training stage; what comes before the first step is the first stage's."""
        begun = time.perf_counter()
        found: dict[str, Span] = {}
        first: dict[str, float] = {}

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            del step, steps, loss
            now = time.perf_counter()
            if stage not in found:
                start = max((span.stop for span in found.values()), default=begun)
                found[stage] = Span(f"{TRAINING} {stage}", start)
                first[stage] = now
                self.spans.append(found[stage])
            span = found[stage]
            span.steps, span.stop, span.stepping = span.steps + 1, now, now - first[stage]

        yield show

    @contextmanager
    def _timed(self, title: str) -> Iterator[None]:
        span = Span(title, time.perf_counter())
        self.spans.append(span)
        before = time.process_time()
        try:
            yield
        finally:
            span.stop, span.processor = time.perf_counter(), time.process_time() - before
