"""How fast finished datasets are read, and in how much memory: by id, and as a stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, rate, step_counter
from pipeline.schema import EMBEDDING, ID, REJECT, TEXT, embedding_type
from pipeline.storage.corpus import Unit
from pipeline.storage.id_index import plan_index, write_segment
from pipeline.storage.manifest import commit, open_manifest
from pipeline.storage.shards import write_unit

ROWS_PER_SHARD = 32768
BATCHES = (1_000, 10_000)
REPEATS = 7
BASELINE_REPEATS = 3
SMALLER = 10
"""Memory is measured on the dataset and on one of so many times fewer rows."""
_SAMPLED_EVERY_S = 0.002


@dataclass(frozen=True)
class ReadersReport:
    """Rates of lookups by ids a batch, of the stream, and peaks of own memory in MB.

    `memory` has for each reader the peak on the smaller dataset and on the whole.
    """

    rows: int
    dimension: int
    lookups: dict[int, Rates]
    stream: Rates
    memory: dict[str, tuple[float, float]]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is of the large batches."""
        return {
            "name": "readers",
            "unit": "ids/s",
            **self.lookups[BATCHES[-1]].to_mapping(),
            "machine": machine_facts(),
            "rows": self.rows,
            "dimension": self.dimension,
            "lookup": {str(size): rates.to_mapping() for size, rates in self.lookups.items()},
            "stream": {"unit": "rows/s", **self.stream.to_mapping()},
            "memory_mb": {
                name: {"rows": [self.rows // SMALLER, self.rows], "peak": list(peaks)}
                for name, peaks in self.memory.items()
            },
        }


def run_readers(
    folder: Path,
    *,
    rows: int,
    dimension: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ReadersReport:
    """Write datasets of random unit rows in a folder, float16, and read them in every way."""
    smaller, whole = str(folder / "smaller"), str(folder / "whole")
    done = step_counter(progress, 5)

    write_random_dataset(smaller, rows // SMALLER, dimension, seed)
    write_random_dataset(whole, rows, dimension, seed)
    done()
    lookups = {size: _lookup_rates(whole, rows, size, seed) for size in BATCHES}
    done()
    stream = _stream_rates(whole, rows, seed)
    done()
    memory = {}
    for name, work in (("lookup", _look_up), ("stream", _stream)):
        memory[name] = (peak_memory(work, smaller, seed), peak_memory(work, whole, seed))
        done()
    return ReadersReport(rows, dimension, lookups, stream, memory)


def write_random_dataset(root: str, rows: int, dimension: int, seed: int) -> None:
    """Write a dataset of substitutes of random unit rows, with its id index, and commit it."""
    receipts = []
    for shard, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
        count = min(ROWS_PER_SHARD, rows - start)
        values = np.random.default_rng([seed, shard]).standard_normal((count, dimension), "f4")
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        ids = [f"caption-{row:09d}" for row in range(start, start + count)]
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), type=embedding_type(dimension, "float32")
        )
        table = pa.table(
            {
                ID: ids,
                TEXT: [f"a caption of some length, the one of the row {one}" for one in ids],
                EMBEDDING: column,
                REJECT: pa.nulls(count, pa.string()),
            }
        )
        unit = Unit(
            key=f"unit-{shard}",
            path="random",
            format="text",
            start=start,
            stop=start + count,
            rows=count,
            digest="",
            has_ids=True,
        )
        receipts.append(
            write_unit(
                root,
                unit=unit,
                fingerprint="random",
                table=table,
                dtype="float16",
                metadata={},
                seconds={},
            )
        )
    commit(
        root,
        kind="substitutes",
        dimension=dimension,
        dtype="float16",
        receipts=receipts,
        source={"path": "random"},
        config={},
        encoder={"model": "random"},
        index=[write_segment(root, shards) for shards in plan_index(receipts, ()).missing],
    )


def _lookup_rates(root: str, rows: int, size: int, seed: int) -> Rates:
    from pipeline.readers import SubstituteLookup

    lookup = SubstituteLookup(root)
    batches = list(islice(_random_ids(rows, size, seed), REPEATS + 1))
    wanted = lookup.lookup(batches[-1])  # and warm
    found = pyarrow_lookup(root, batches[-1])
    assert np.array_equal(wanted, found), "the baseline finds other embeddings"
    return Rates(
        ours=tuple(rate(size, partial(lookup.lookup, ids)) for ids in batches[:REPEATS]),
        baseline=tuple(
            rate(size, partial(pyarrow_lookup, root, ids)) for ids in batches[:BASELINE_REPEATS]
        ),
    )


def pyarrow_lookup(root: str, ids: list[str]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return the embeddings (n, d) of ids as one would without an index: every shard is read."""
    wanted = pa.array(ids)
    found: np.ndarray[Any, np.dtype[np.float16]] | None = None
    for receipt in open_manifest(root).receipts:
        table = pq.read_table(f"{root}/{receipt.path}", columns=[ID, EMBEDDING])
        places = pc.index_in(wanted, value_set=table.column(ID).combine_chunks())
        here = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        rows = table.column(EMBEDDING).take(places.drop_null()).combine_chunks()
        width = rows.type.list_size
        if found is None:
            found = np.empty((len(ids), width), np.float16)
        found[here] = rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    assert found is not None
    return found


def _stream_rates(root: str, rows: int, seed: int) -> Rates:
    from pipeline.readers import SubstituteDataset

    dataset = SubstituteDataset(root, seed=seed)
    return Rates(
        ours=tuple(rate(rows, lambda: _exhaust(dataset)) for _ in range(BASELINE_REPEATS)),
        baseline=tuple(
            rate(rows, lambda: _exhaust(pyarrow_rows(root))) for _ in range(BASELINE_REPEATS)
        ),
    )


def pyarrow_rows(root: str) -> Iterator[dict[str, Any]]:
    """Yield the rows as one would by pyarrow alone: a row group at a time, as they stand."""
    for receipt in open_manifest(root).receipts:
        parquet = pq.ParquetFile(f"{root}/{receipt.path}")
        width = parquet.schema_arrow.field(EMBEDDING).type.list_size
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=[ID, TEXT, EMBEDDING])
            values = table.column(EMBEDDING).combine_chunks().flatten()
            embeddings = values.to_numpy(zero_copy_only=False).reshape(-1, width)
            ids, texts = table.column(ID).to_pylist(), table.column(TEXT).to_pylist()
            for one, text, embedding in zip(ids, texts, embeddings, strict=True):
                yield {ID: one, TEXT: text, EMBEDDING: embedding}


def peak_memory(work: Callable[[str, int], None], root: str, seed: int) -> float:
    """Return the most memory of its own, in MB, that a fresh process has while it reads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_watched, work, root, seed).result()


def _watched(work: Callable[[str, int], None], root: str, seed: int) -> float:
    peak, stop = own_memory(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(_SAMPLED_EVERY_S):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work(root, seed)
    finally:
        stop.set()
        watcher.join()
    return peak


def own_memory() -> float:
    """Return the memory of this process that no file backs, in MB (Linux: RssAnon)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (said,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(said) / 1024


def _look_up(root: str, seed: int) -> None:
    from pipeline.readers import SubstituteLookup

    lookup = SubstituteLookup(root)
    for ids in islice(_random_ids(len(lookup), BATCHES[0], seed), 100):
        lookup.lookup(ids)


def _stream(root: str, seed: int) -> None:
    from pipeline.readers import SubstituteDataset

    _exhaust(SubstituteDataset(root, seed=seed))


def _random_ids(rows: int, size: int, seed: int) -> Iterator[list[str]]:
    draws = np.random.default_rng(seed)
    while True:
        yield [f"caption-{row:09d}" for row in draws.integers(0, rows, size)]


def _exhaust(rows: Iterable[Any]) -> None:
    for _ in rows:
        pass
