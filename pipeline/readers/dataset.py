"""A finished dataset as a torch `IterableDataset`: shuffled, split, resumable to the row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.readers.order import (
    ORDER,
    RowOrder,
    delivered,
    rank_range,
    share,
    window_order,
)
from pipeline.readers.rows import RowReader, first_schema
from pipeline.readers.version import PinnedVersion, pin
from pipeline.schema import EMBEDDING, ID, TEXT
from pipeline.storage.locations import listed

_BLOCK_ROWS = 256
"""Rows made ready at once; a row that is kept keeps the memory of so many embeddings, no more."""


class SubstituteDataset(IterableDataset[dict[str, Any]]):
    """The rows of one version of a dataset, each a dict of `id`, `text` and `embedding` (d,).

    ::

        dataset = SubstituteDataset("s3://bucket/run/dataset", dtype=torch.float32)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            for batch in DataLoader(dataset, batch_size=256, num_workers=4):
                batch["embedding"]  # (256, d)

    The version (the current one, if none is named) is chosen now and stays, whatever is published
    later. `columns` says what a row holds, passed-through columns too (``["id", "embedding",
    "conversations"]``); nothing else is read. Corpora without captions have null `text`: give
    ``columns=["id", "embedding"]``. `dtype` is the embeddings', the stored one by default.

    Each id comes once an epoch, whatever the numbers of ranks, workers and shards: the rows of all
    shards in a row are cut in near-equal contiguous parts, for ranks and then for their workers.
    Ranks differ by one row at most; with `equal_ranks` by none, since the last rows of the epoch's
    order, fewer than `world_size`, are left out (other rows each epoch, if shuffled). Rank and
    world size are taken from `torch.distributed` if it is initialised when this is made, else from
    the variables RANK and WORLD_SIZE, else there is one rank. With Hugging Face's Trainer or
    Accelerate give ``rank=0, world_size=1``: they split an IterableDataset among the processes
    themselves, and what is split twice loses rows without a word.

    With `shuffle` the pieces of 4,096 rows of all shards come in an order that is drawn anew for
    each epoch, and so do the rows within windows of `buffer_size` rows. Memory holds one window
    and one row group, however large the dataset. Without, rows come shard by shard in order of id.

    To resume in the middle of an epoch give torchdata's `StatefulDataLoader` its own state, or
    `load_state_dict` what `state_after` returns.

    Raises:
        ValueError: if there is no such version, column or rank, or if no columns are given and
            the captions are null.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        version: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        buffer_size: int = 16384,
        rank: int | None = None,
        world_size: int | None = None,
        dtype: torch.dtype | None = None,
        equal_ranks: bool = False,
    ) -> None:
        super().__init__()
        if seed < 0 or buffer_size < 1:
            raise ValueError(
                f"seed is {seed} and buffer_size {buffer_size}; they must be at least 0 and 1"
            )
        self.rank, self.world_size = _rank_and_world_size(rank, world_size)
        self.pinned: PinnedVersion = pin(os.fspath(path), version)
        self.columns = tuple(dict.fromkeys((ID, TEXT, EMBEDDING) if columns is None else columns))
        self.shuffle, self.seed, self.buffer_size = shuffle, seed, buffer_size
        self.dtype, self.equal_ranks = dtype, equal_ranks
        self._rows = [shard.rows for shard in self.pinned.shards]
        # As bytes: a pickled Arrow type may come back as another one.
        schema = self._checked_schema(by_default=columns is None)
        self._schema: bytes = schema.serialize().to_pybytes()
        # In shared memory: workers that outlive an epoch hear of the next one.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._resumed: dict[str, Any] | None = None
        self._used = torch.zeros(1, dtype=torch.bool)
        self._now = {"worker": 0, "workers": 1, "first": 0, "position": 0, "epoch": 0}

    @property
    def version(self) -> str:
        """The version that is read."""
        return self.pinned.version

    def __len__(self) -> int:
        """Return the rows of this rank in an epoch, all its workers together."""
        start, stop = self._range()
        return stop - start

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a state loaded of another epoch is dropped."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be at least 0")
        self._epoch.fill_(epoch)
        if self._resumed is not None and self._resumed["epoch"] != epoch:
            self._resumed = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Return the rows of this worker, from where a loaded state says for the first pass."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, first, position = int(self._epoch), 0, 0
        resumed = self._resumed
        if resumed is not None and not self._used[worker % len(self._used)]:
            if resumed["workers"] != workers:
                raise ValueError(
                    f"the state is of {resumed['workers']} DataLoader workers and there are "
                    f"{workers}; resume with as many"
                )
            self._used[worker] = True
            epoch, first = resumed["epoch"], resumed["first"]
            worker = (worker + first) % workers
            found = resumed["positions"][worker]
            if found is None:
                raise ValueError(
                    f"the state is of another worker than {worker}; give each worker its own"
                )
            position = found
        self._now = {
            "worker": worker,
            "workers": workers,
            "first": first,
            "position": position,
            "epoch": epoch,
        }
        return self._read(self._now)

    def state_dict(self) -> dict[str, Any]:
        """Return where the pass of this process stands: plain values, for `load_state_dict`.

        To be called in the process that iterates, as torchdata's `StatefulDataLoader` does; for a
        plain DataLoader with workers see `state_after`.
        """
        now = self._now
        positions: list[int | None] = [None] * now["workers"]
        positions[now["worker"]] = now["position"]
        return self._state(now["epoch"], positions, now["first"])

    def state_after(
        self, batches: int, batch_size: int, num_workers: int, drop_last: bool = False
    ) -> dict[str, Any]:
        """Return the state of this rank after a plain DataLoader gave `batches` of this epoch.

        `batches` counts from the beginning of the epoch, resumed in between or not; the other
        arguments are the DataLoader's. Given to `load_state_dict` before the next DataLoader is
        made, the remaining batches come as they would have come.

        Raises:
            ValueError: if an epoch has fewer batches.
        """
        resumed = self._resumed
        epoch = int(self._epoch) if resumed is None else int(resumed["epoch"])
        start, stop = self._range()
        workers = max(num_workers, 1)
        parts = [share(stop - start, workers, worker) for worker in range(workers)]
        rows = [end - begin for begin, end in parts]
        positions, first = delivered(rows, batches, batch_size, drop_last)
        return self._state(epoch, list(positions), first)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state; passes after it are whole again.

        Raises:
            ValueError: if it is of another version, seed, order, rank or world size. One of
                another number of workers is refused when the pass begins.
        """
        wanted = self._state(0, [], 0)
        missing = wanted.keys() - state.keys()
        if missing:
            raise ValueError(f"not a state of this dataset: it lacks {listed(sorted(missing))}")
        changing = {"epoch", "positions", "first", "workers"}
        for name in wanted.keys() - changing:
            if state[name] != wanted[name]:
                raise ValueError(
                    f"the state is of {name} {state[name]} and this dataset of {name} "
                    f"{wanted[name]}; resume with what it was made with, or start the epoch anew"
                )
        self._resumed = {**state, "positions": list(state["positions"])}
        # Shared, so that a worker that has gone on from it does not do so in every later pass.
        self._used = torch.zeros(state["workers"], dtype=torch.bool).share_memory_()

    def _state(self, epoch: int, positions: list[int | None], first: int) -> dict[str, Any]:
        return {
            "order": ORDER,
            "version": self.version,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "buffer_size": self.buffer_size,
            "equal_ranks": self.equal_ranks,
            "rank": self.rank,
            "world_size": self.world_size,
            "epoch": epoch,
            "workers": len(positions),
            "first": first,
            "positions": positions,
        }

    def _range(self) -> tuple[int, int]:
        return rank_range(sum(self._rows), self.world_size, self.rank, self.equal_ranks)

    def _read(self, now: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Yield a consumer's rows from `now["position"]` on, which is counted up with them."""
        begin, end = self._range()
        start, stop = share(end - begin, now["workers"], now["worker"])
        order = RowOrder(self._rows, shuffle=self.shuffle, seed=self.seed, epoch=now["epoch"])
        consumer = self.rank * now["workers"] + now["worker"]
        reader = RowReader(self.pinned, pa.ipc.read_schema(pa.py_buffer(self._schema)))
        try:
            while now["position"] < stop - start:
                window, skipped = divmod(now["position"], self.buffer_size)
                first = begin + start + window * self.buffer_size
                last = min(first + self.buffer_size, begin + stop)
                loaded = _Window(reader, order, first, last, self.dtype)
                rows = np.arange(last - first)
                if self.shuffle:
                    rows = window_order(
                        last - first,
                        seed=self.seed,
                        epoch=now["epoch"],
                        consumer=consumer,
                        window=window,
                    )
                for block in range(skipped, len(rows), _BLOCK_ROWS):
                    for row in loaded.rows(rows[block : block + _BLOCK_ROWS]):
                        now["position"] += 1
                        yield row
        finally:
            reader.close()

    def _checked_schema(self, by_default: bool) -> pa.Schema:
        """Return the columns' types in the first shard; raises ValueError if it has one not."""
        filled = [number for number, rows in enumerate(self._rows) if rows]
        if not filled:
            raise ValueError(f"{self.pinned.shown} has no row")
        schema, nulls = first_schema(self.pinned, filled[0])
        there = schema.names
        unknown = [name for name in self.columns if name not in there]
        if unknown or not self.columns:
            raise ValueError(
                f"{self.pinned.shown} has no column {listed(unknown)}; it has {listed(there)}"
            )
        if by_default and TEXT in nulls:
            raise ValueError(
                f"{self.pinned.shown} has no captions, its text is null; give "
                'columns=["id", "embedding"], or name "text" too if your collate_fn takes None'
            )
        return pa.schema([pa.field(name, schema.field(name).type) for name in self.columns])


class _Window:
    """The rows at the positions [first, last) of an epoch's order, in memory."""

    def __init__(
        self, reader: RowReader, order: RowOrder, first: int, last: int, dtype: torch.dtype | None
    ) -> None:
        self._embeddings: torch.Tensor | None = None
        others: list[pa.Table] = []
        filled = 0
        for piece in order.pieces(first, last):
            for part in reader.read(piece.shard, piece.start, piece.stop):
                others.append(part.others)
                if part.embeddings is not None:
                    values = torch.from_numpy(part.embeddings.copy())
                    if self._embeddings is None:
                        shape = (last - first, values.shape[1])
                        self._embeddings = torch.empty(shape, dtype=dtype or values.dtype)
                    self._embeddings[filled : filled + len(values)] = values
                    filled += len(values)
        self._others = pa.concat_tables(others).combine_chunks()

    def rows(self, chosen: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a window by their places in it."""
        columns: dict[str, Sequence[Any]] = {}
        if self._others.num_columns:
            columns = self._others.take(pa.array(chosen)).to_pydict()
        if self._embeddings is not None:
            columns[EMBEDDING] = self._embeddings[torch.from_numpy(chosen)].unbind(0)
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the rank and world size: those given, torch.distributed's, the environment's."""
    if (rank is None) != (world_size is None):
        raise ValueError("give rank and world_size both, or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            said = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
            if not all(one.isdigit() for one in said):
                raise ValueError(f"RANK and WORLD_SIZE are {said[0]!r} and {said[1]!r}, no numbers")
            rank, world_size = int(said[0]), int(said[1])
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size}; ranks are 0 to world_size - 1")
    return rank, world_size
