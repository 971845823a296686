"""Who reads which rows in which order: every row once, whatever is asked first."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.readers.order import (
    ORDER,
    PIECE_ROWS,
    RowOrder,
    delivered,
    rank_range,
    share,
    window_order,
)
from pipeline.storage.shards import ROWS_PER_GROUP

PIECES = [
    (0, 18878, 20000),
    (0, 0, 4096),
    (2, 0, 4096),
    (2, 4096, 5000),
    (0, 12288, 16384),
    (0, 8192, 12288),
    (0, 4096, 8192),
    (0, 16384, 18878),
]
ROWS = st.lists(st.integers(0, 20), max_size=12)


def positions(order: RowOrder, start: int, stop: int) -> list[tuple[int, int]]:
    """Return (shard, row) at each position."""
    return [
        (piece.shard, row)
        for piece in order.pieces(start, stop)
        for row in range(piece.start, piece.stop)
    ]


@given(ROWS, st.booleans(), st.integers(0, 3), st.integers(1, 30), st.integers(1, 21))
def test_pieces_are_every_row_once(rows, shuffle, epoch, step, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.readers.order.PIECE_ROWS", size)
        order = RowOrder(rows, shuffle=shuffle, seed=1, epoch=epoch)
    total = sum(rows)
    whole = positions(order, 0, total)
    assert sorted(whole) == [(shard, row) for shard, n in enumerate(rows) for row in range(n)]
    if not shuffle:
        assert whole == sorted(whole)
    parts = [positions(order, at, min(at + step, total)) for at in range(0, total, step)]
    assert [one for part in parts for one in part] == whole


def test_pieces_are_row_groups_and_stay_what_they_are():
    assert PIECE_ROWS == ROWS_PER_GROUP
    rows = [20_000, 0, 5_000]
    pieces = list(RowOrder(rows, shuffle=True, seed=3, epoch=1).pieces(0, 25_000))
    assert all(piece.start // 4096 == (piece.stop - 1) // 4096 for piece in pieces)
    # Another order would make every state that was saved another one: then count ORDER up.
    assert ORDER == 2
    assert [(piece.shard, piece.start, piece.stop) for piece in pieces] == PIECES


def test_a_thousand_million_rows_take_little():
    rows = [65_536] * 15_259
    tracemalloc.start()
    order = RowOrder(rows, shuffle=True, seed=0, epoch=0)
    (piece,) = order.pieces(10**9 - 1, 10**9)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert piece.stop == piece.start + 1
    assert kept < 10 * 2**20
    assert peak < 40 * 2**20


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_near_equal_and_leave_nothing_out(total, world_size, workers):
    seen: list[int] = []
    sizes = []
    for rank in range(world_size):
        start, stop = rank_range(total, world_size, rank, equal=False)
        sizes.append(stop - start)
        for worker in range(workers):
            first, last = share(stop - start, workers, worker)
            seen += range(start + first, start + last)
    assert seen == list(range(total))
    assert max(sizes) - min(sizes) <= 1
    equal = [rank_range(total, world_size, rank, equal=True) for rank in range(world_size)]
    assert {stop - start for start, stop in equal} == {total // world_size}
    assert equal[-1][1] == total - total % world_size


def test_windows_differ_by_all_that_names_them():
    names = {"seed": 0, "epoch": 0, "consumer": 0, "window": 0}
    first = window_order(100, **names)
    assert sorted(first) == list(range(100))
    assert (first == window_order(100, **names)).all()
    for name in names:
        assert (first != window_order(100, **{**names, name: 1})).any()


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 7),
    st.booleans(),
    st.data(),
)
def test_delivered_is_what_taking_turns_gives(rows, size, drop_last, data):
    left = [
        [min(size, n - at) for at in range(0, n, size) if not drop_last or n - at >= size]
        for n in rows
    ]
    turns: list[tuple[int, int]] = []
    while any(left):
        for worker, batches in enumerate(left):
            if batches:
                turns.append((worker, batches.pop(0)))
    count = data.draw(st.integers(0, len(turns)))
    wanted = [sum(n for one, n in turns[:count] if one == worker) for worker in range(len(rows))]
    positions, first = delivered(rows, count, size, drop_last)
    assert positions == wanted
    # Whose turn it is: from there on, workers come in the order in which they come in truth.
    if count < len(turns):
        rest = [turns[count:][at][0] for at in range(len(turns) - count)]
        remaining = {worker: rest.count(worker) for worker in rest}
        again = []
        while any(remaining.values()):
            for step in range(len(rows)):
                worker = (first + step) % len(rows)
                if remaining.get(worker):
                    remaining[worker] -= 1
                    again.append(worker)
        assert again == rest
    with pytest.raises(ValueError, match=f"an epoch has {len(turns)}"):
        delivered(rows, len(turns) + 1, size, drop_last)
    assert np.sum(delivered(rows, len(turns), size, drop_last)[0]) == sum(
        n - n % size if drop_last else n for n in rows
    )
