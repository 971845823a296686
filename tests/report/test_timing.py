"""Stages of a run, timed."""

from __future__ import annotations

import time

import pytest

from pipeline.report.timing import TimingReporter


def test_stages_are_remembered_in_order(capsys: pytest.CaptureFixture[str]):
    reporter = TimingReporter()
    with reporter.counted("planning") as show:
        show(1, 2)
        time.sleep(0.02)

    def fail() -> None:
        with reporter.progress("encoding", 3) as advance:
            advance(1)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert [span.title for span in reporter.spans] == ["planning", "encoding"]
    first, second = reporter.spans
    assert first.stop - first.start >= 0.02 > first.processor
    assert first.start < first.stop <= second.start <= second.stop
    assert capsys.readouterr().err == ""


def test_training_stages_follow_one_another():
    reporter = TimingReporter()
    with reporter.training() as show:
        time.sleep(0.05)
        for step in range(1, 4):
            show("prior", step, 3, 0.5)
            time.sleep(0.01)
        show("refiner", 1, 1, 0.5)
    prior, refiner = reporter.spans
    assert (prior.title, refiner.title) == ("training prior", "training refiner")
    assert (prior.steps, refiner.steps) == (3, 1)
    assert prior.stop == refiner.start
    assert prior.stop - prior.start >= 0.05 + 2 * 0.01  # what comes before the first step too
    assert 0.01 <= prior.step_seconds < prior.stop - prior.start - 0.05 + 0.01
    assert refiner.step_seconds == 0.0
