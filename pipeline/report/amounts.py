"""Seconds and bytes as people read them."""

from __future__ import annotations

import itertools

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Return seconds with their two largest units, such as "3 h 20 min"; short ones as "1.5 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 59.95 else "1 min 0 s"
    for (name, size), (next_name, next_size) in itertools.pairwise(_UNITS):
        left = round(seconds / next_size) * next_size
        if left >= size:
            return f"{left // size:,} {name} {left % size // next_size} {next_name}"
    raise AssertionError(f"{seconds} seconds are less than a minute")


def gibibytes(size: float | None) -> str:
    """Return bytes in GiB, "not seen" where there is no figure."""
    return "not seen" if size is None else f"{size / 2**30:,.2f} GiB"
