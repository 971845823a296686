"""Seconds and bytes as people read them."""

from __future__ import annotations

import pytest

from pipeline.report.amounts import duration, gibibytes


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (1.54, "1.5 s"),
        (59.96, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3599.6, "1 h 0 min"),
        (3600 * 3 + 60 * 20 + 29, "3 h 20 min"),
        (86_399, "1 d 0 h"),
        (86_400 * 1234 + 3600 * 5, "1,234 d 5 h"),
    ],
)
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said


def test_sizes():
    assert gibibytes(1536 * 2**20) == "1.50 GiB"
    assert gibibytes(2**50) == "1,048,576.00 GiB"
    assert gibibytes(None) == "not seen"
