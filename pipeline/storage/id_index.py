"""The id index of a dataset: immutable segments that say in which shard and row an id stands.

A segment covers up to 64 shards and four million rows (or one shard of more). It is a safetensors
file `index/NAME.safetensors` of

- `entries` (n, 3) uint64, sorted: both halves of an id's 128-bit hash, then shard << 32 | row;
- `fences` (ceil(n / 256),) uint64: the first half of every 256th entry, so that one short read
  finds a hash;
- `groups` (g, 3) int64: for each row group its shard, its first row, and the offset of its first
  embedding in the shard's file (-1 where the embeddings have to be decoded).

A shard's number is its place in the list of paths in the file's metadata. The ids themselves are
not kept: two ids of one 128-bit hash do not occur.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import ID
from pipeline.storage import locations
from pipeline.storage.duplicates import Hashes, hash_ids
from pipeline.storage.locations import redact_url
from pipeline.storage.receipts import Kinds, Receipt, checked
from pipeline.storage.row_groups import embedding_groups
from pipeline.storage.slices import combined

INDEX = "index"
FORMAT = 1
ENTRIES_PER_FENCE = 256
SHARDS_PER_SEGMENT = 64
"""What one shard that came or went makes be read again, ids only."""
ROWS_PER_SEGMENT = 4_194_304
"""What a task holds in memory while it sorts them; one shard of more is a segment of its own."""
_NOTES = "anisoalign.index"
_READERS = 8
_KINDS: Kinds = {"path": (str,), "bytes": (int,), "sha256": (str,), "shards": (list,)}
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "entries": ("U64", (3,)),
    "fences": ("U64", ()),
    "groups": ("I64", (3,)),
}
"""Each array's type and the widths after its first axis."""
_MOST_HEADER_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class IndexSegment:
    """A segment as a manifest names it; paths are relative to the dataset folder."""

    path: str
    bytes: int
    sha256: str
    shards: tuple[str, ...]

    @classmethod
    def from_dict(cls, value: object) -> IndexSegment:
        """Return the segment in a parsed JSON object; raises ValueError if it is none."""
        values = checked(value, _KINDS, "segment of an id index")
        if not all(isinstance(one, str) for one in values["shards"]) or values["bytes"] < 0:
            raise ValueError("not a segment of an id index: shards or bytes cannot be")
        return cls(**{**values, "shards": tuple(values["shards"])})


@dataclass(frozen=True, eq=False)
class ShardIds:
    """What a segment needs of a shard: hashes (n, 2) of ids by row, and groups (g, 2).

    `groups` is as `embedding_groups` gives it.
    """

    path: str
    hashes: Hashes
    groups: npt.NDArray[np.int64]


@dataclass(frozen=True)
class IndexPlan:
    """The segments that a version takes over, and the shards of each that has to be built."""

    kept: tuple[IndexSegment, ...]
    missing: tuple[tuple[Receipt, ...], ...]


def plan_index(receipts: Sequence[Receipt], there: Sequence[IndexSegment]) -> IndexPlan:
    """Return which of the segments that are there serve these shards, and what is to be built.

    A segment serves as it is if it is full and has all its shards still, or if it has just the
    shards that would be indexed anew: so an unchanged dataset reads nothing, there are never many
    small segments, and a night reads the ids of fewer than 64 shards beside the new ones (of
    shards of one size). Full is one of 64 shards, or of half of the rows that one may have: where
    a segment was closed since the next shard would not fit, it or that shard has more.
    """
    by_path = {receipt.path: receipt for receipt in receipts}
    kept: dict[str, IndexSegment] = {}
    covered: set[str] = set()
    for segment in there:
        shards = [by_path[path] for path in segment.shards if path in by_path]
        full = len(shards) == SHARDS_PER_SEGMENT or 2 * _rows(shards) >= ROWS_PER_SEGMENT
        whole = len(shards) == len(segment.shards) and segment.path == segment_path(shards)
        if full and whole and covered.isdisjoint(segment.shards):
            kept[segment.path] = segment
            covered |= set(segment.shards)
    rest = sorted(by_path.keys() - covered)
    known = {segment.path: segment for segment in there}
    missing: list[tuple[Receipt, ...]] = []
    for group in _cut([by_path[path] for path in rest]):
        path = segment_path(group)
        if path in known:
            kept[path] = known[path]
        else:
            missing.append(group)
    return IndexPlan(kept=tuple(kept.values()), missing=tuple(missing))


def _cut(shards: Sequence[Receipt]) -> Iterator[tuple[Receipt, ...]]:
    """Yield the shards in groups that one segment can take."""
    group: list[Receipt] = []
    for shard in shards:
        if group and (
            len(group) == SHARDS_PER_SEGMENT or _rows(group) + shard.rows > ROWS_PER_SEGMENT
        ):
            yield tuple(group)
            group = []
        group.append(shard)
    if group:
        yield tuple(group)


def _rows(shards: Sequence[Receipt]) -> int:
    return sum(shard.rows for shard in shards)


def segment_path(shards: Sequence[Receipt]) -> str:
    """Return the path of the segment of some shards: a digest of their names and bytes."""
    content = [[receipt.path, receipt.sha256] for receipt in shards]
    return f"{INDEX}/{combined('id index', FORMAT, content)[:32]}.safetensors"


def write_segment(root: str, shards: Sequence[Receipt]) -> IndexSegment:
    """Index the ids of some shards, reading their id columns only, and write the segment.

    Raises:
        ValueError: if a shard cannot be read, is not its receipt's, or `root` cannot be written.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda receipt: read_shard_ids(root, receipt), shards))
    data = segment_bytes(found)
    path = segment_path(shards)
    locations.write_bytes(locations.join_inside(root, path), data)
    return IndexSegment(
        path=path,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        shards=tuple(receipt.path for receipt in shards),
    )


def read_shard_ids(root: str, receipt: Receipt) -> ShardIds:
    """Return what an index needs of a shard, reading its id column and footer only.

    Raises:
        ValueError: if it is missing, damaged, or has another number of rows than its receipt.
    """
    url = locations.join_inside(root, receipt.path)
    try:
        with locations.open_for_reading(url) as file:
            parquet = pq.ParquetFile(file)
            ids = parquet.read(columns=[ID], use_threads=False).column(ID).to_pylist()
            groups = embedding_groups(file, parquet)
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"cannot read the ids of the shard {redact_url(url)}: {line}; `anisoalign verify` says "
            "more"
        ) from error
    if len(ids) != receipt.rows:
        raise ValueError(
            f"{redact_url(url)} has {len(ids)} rows, its receipt says {receipt.rows}; `anisoalign "
            "verify` says more"
        )
    return ShardIds(receipt.path, hash_ids(ids), groups)


def segment_arrays(shards: Sequence[ShardIds]) -> dict[str, npt.NDArray[Any]]:
    """Return a segment's arrays: entries (n, 3), fences (f,), groups (g, 3).

    An id that stands twice has its entries side by side, the first shard's first.
    """
    rows = np.concatenate(
        [np.empty(0, np.uint64)]
        + [
            (np.uint64(number) << np.uint64(32)) | np.arange(len(shard.hashes), dtype=np.uint64)
            for number, shard in enumerate(shards)
        ]
    )
    hashes = np.concatenate([np.empty((0, 2), np.uint64), *(shard.hashes for shard in shards)])
    order = np.lexsort((rows, hashes[:, 1], hashes[:, 0]))
    entries = np.column_stack([hashes, rows])[order]
    groups = [
        np.column_stack([np.full(len(shard.groups), number), shard.groups])
        for number, shard in enumerate(shards)
    ]
    return {
        "entries": np.ascontiguousarray(entries, dtype=np.uint64),
        "fences": np.ascontiguousarray(entries[::ENTRIES_PER_FENCE, 0]),
        "groups": np.concatenate([np.empty((0, 3), np.int64), *groups]).astype(np.int64),
    }


def segment_bytes(shards: Sequence[ShardIds]) -> bytes:
    """Return a segment's file; the same shards give the same bytes."""
    from safetensors.numpy import save

    # One key: safetensors keeps no order of several.
    notes = {"format": FORMAT, "shards": [shard.path for shard in shards]}
    data: bytes = save(segment_arrays(shards), metadata={_NOTES: json.dumps(notes)})
    return data


@dataclass(frozen=True)
class SegmentLayout:
    """A segment file's shards, and where each array stands: (first byte, stop, shape)."""

    shards: tuple[str, ...]
    arrays: dict[str, tuple[int, int, tuple[int, ...]]]


def segment_layout(read: Callable[[int, int], bytes], size: int) -> SegmentLayout:
    """Return what a segment's header says; `read` returns the bytes [start, stop) of its file.

    Raises:
        ValueError: if it is no segment of ours, or its arrays do not fill the file.
    """
    try:
        length = int.from_bytes(read(0, 8), "little")
        if not 0 < length <= min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError("its header has no length that can be")
        header = json.loads(read(8, 8 + length))
        notes = json.loads(header.pop("__metadata__")[_NOTES])
        if notes["format"] != FORMAT:
            raise ValueError(f"format {notes['format']} is not read; update anisoalign")
        arrays = {}
        for name, (dtype, width) in _ARRAYS.items():
            start, stop = header[name]["data_offsets"]
            shape = tuple(header[name]["shape"])
            fits = stop - start == 8 * int(np.prod(shape)) and 8 + length + stop <= size
            if header[name]["dtype"] != dtype or shape[1:] != width or start < 0 or not fits:
                raise ValueError(f"its {name} are not those of an index")
            arrays[name] = (8 + length + start, 8 + length + stop, shape)
        return SegmentLayout(tuple(str(path) for path in notes["shards"]), arrays)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header is not that of an id index") from error


def read_segment(data: bytes) -> tuple[tuple[str, ...], dict[str, npt.NDArray[Any]]]:
    """Return the shards and arrays of a whole segment file; raises ValueError if it is none."""
    layout = segment_layout(lambda start, stop: data[start:stop], len(data))
    return layout.shards, {
        name: array_of(data[start:stop], name, shape)
        for name, (start, stop, shape) in layout.arrays.items()
    }


def array_of(data: bytes, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the bytes of one of a segment's arrays, or of some rows of it, as an array."""
    dtype = "<i8" if _ARRAYS[name][0] == "I64" else "<u8"
    return np.frombuffer(data, dtype).reshape(shape)
