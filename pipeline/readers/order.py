"""In which order an epoch reads the rows, and who reads which: pure functions of the position.

All rows stand in a ring, shard after shard in pieces of 4,096 rows, the pieces of all shards
permuted by (seed, epoch), which draw the first row too. Ranks take contiguous ranges from there,
and the DataLoader workers of a rank contiguous parts of the rank's. A consumer's range is cut in
windows of `buffer_size` rows, each permuted by (seed, epoch, consumer, window). So what stands at
any position is known without what comes before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ORDER = 2
"""Counted up when any of this changes; a state of another order cannot be resumed."""

PIECE_ROWS = 4096
"""A row group of the shards as they are written, so that a piece is one read. Part of the order."""

_PIECES, _WINDOWS = 0, 1


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a shard, given by its number."""

    shard: int
    start: int
    stop: int


class RowOrder:
    """The rows of one epoch: shards with `rows` each, their pieces permuted if `shuffle`.

    Takes 24 bytes a piece: 6 MB for a thousand million rows.
    """

    def __init__(self, rows: Sequence[int], *, shuffle: bool, seed: int, epoch: int) -> None:
        counts = np.asarray(rows, np.int64)
        self._shards, self._firsts, self._turn = np.arange(len(counts)), np.zeros_like(counts), 0
        if shuffle:
            draws = np.random.default_rng([seed, epoch, _PIECES])
            of_shard = -(-counts // PIECE_ROWS)
            shards = np.repeat(self._shards, of_shard)
            before = np.cumsum(of_shard) - of_shard
            firsts = (np.arange(len(shards)) - before[shards]) * PIECE_ROWS
            order = draws.permutation(len(shards))
            self._shards, self._firsts = shards[order], firsts[order]
            counts = np.minimum(counts[self._shards] - self._firsts, PIECE_ROWS)
            # Else ranks of few pieces would read the same rows every epoch.
            self._turn = int(draws.integers(counts.sum())) if len(order) else 0
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield what stands at the positions [start, stop), in order."""
        start, stop, total = start + self._turn, stop + self._turn, int(self._starts[-1])
        yield from self._between(min(start, total), min(stop, total))
        yield from self._between(max(start - total, 0), max(stop - total, 0))

    def _between(self, start: int, stop: int) -> Iterator[Piece]:
        place = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[place + 1]))
            if end > start:
                skipped = int(self._firsts[place]) - int(self._starts[place])
                yield Piece(int(self._shards[place]), start + skipped, end + skipped)
            start, place = end, place + 1


def share(total: int, parts: int, part: int) -> tuple[int, int]:
    """Return the range [start, stop) of one of several near-equal contiguous parts."""
    return total * part // parts, total * (part + 1) // parts


def rank_range(total: int, world_size: int, rank: int, equal: bool) -> tuple[int, int]:
    """Return the positions [start, stop) of a rank; `equal` leaves out the last few of all."""
    return share(total - total % world_size if equal else total, world_size, rank)


def window_order(
    rows: int, *, seed: int, epoch: int, consumer: int, window: int
) -> npt.NDArray[np.int64]:
    """Return the permutation (rows,) of a window."""
    draws = np.random.default_rng([seed, epoch, _WINDOWS, consumer, window])
    return draws.permutation(rows)


def delivered(
    rows: Sequence[int], batches: int, batch_size: int, drop_last: bool
) -> tuple[list[int], int]:
    """Return the rows that each worker has given after so many batches, and whose turn it is.

    A DataLoader asks its workers in turn and passes over those that have no batch left; `rows` are
    those that each worker has in all. With `drop_last` a worker leaves out its last short batch.

    Raises:
        ValueError: if there are not so many batches.
    """
    counts = [n // batch_size if drop_last else -(-n // batch_size) for n in rows]
    if not 0 <= batches <= sum(counts):
        raise ValueError(f"{batches} batches were not delivered: an epoch has {sum(counts)}")
    low, high = 0, max(counts, default=0)
    while low < high:  # the most full turns that so many batches allow
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in counts) <= batches:
            low = middle
        else:
            high = middle - 1
    given = [min(count, low) for count in counts]
    left, turn = batches - sum(given), 0
    for worker, count in enumerate(counts):
        if left and count > low:
            given[worker] += 1
            left, turn = left - 1, worker + 1
    return [min(one * batch_size, n) for one, n in zip(given, rows, strict=True)], turn % len(
        counts
    )
