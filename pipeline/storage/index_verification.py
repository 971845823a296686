"""Does an id index still say of its shards what they hold? Every problem names its file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from pipeline.storage import locations
from pipeline.storage.id_index import IndexSegment, ShardIds, read_segment, segment_arrays
from pipeline.storage.manifest import Manifest


def index_problems(
    root: str, manifest: Manifest, shards: Mapping[str, ShardIds], damaged: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (path, what is wrong) of a version's index, by what its shards were found to hold.

    `shards` has the ids of each shard by path; what a segment says of `damaged` ones isn't looked
    at. A shard in no segment, or in two, is a problem of its own. A version without index has none.
    """
    if manifest.index is None:
        return
    counts = Counter(path for segment in manifest.index for path in segment.shards)
    for receipt in manifest.receipts:
        count = counts.pop(receipt.path, 0)
        if count != 1:
            yield receipt.path, f"stands in {count} segments of the id index, not in one"
    for path in counts:
        yield path, "stands in the id index, but is no shard of this version"
    for segment in manifest.index:
        for what in _segment_problems(root, segment, shards, damaged):
            yield segment.path, what


def _segment_problems(
    root: str,
    segment: IndexSegment,
    shards: Mapping[str, ShardIds],
    damaged: Collection[str],
) -> Iterator[str]:
    data, problem = _file_of(root, segment)
    if problem is not None:
        yield problem
    if data is None:
        return
    try:
        paths, found = read_segment(data)
    except ValueError as error:
        yield f"is no segment of an id index: {error}"
        return
    if paths != segment.shards:
        yield "is of other shards than the manifest says"
        return
    if not set(paths) <= shards.keys() or not set(paths).isdisjoint(damaged):
        return
    wanted = segment_arrays([shards[path] for path in paths])
    for name, what in _MEANINGS.items():
        if not np.array_equal(found[name], wanted[name]):
            yield f"does not hold {what} of its shards; delete it, the next run writes it anew"


_MEANINGS = {
    "entries": "the ids and rows",
    "fences": "the fences to the ids",
    "groups": "the places of the row groups",
}


def _file_of(root: str, segment: IndexSegment) -> tuple[bytes | None, str | None]:
    """Return a segment's bytes, if they can be read, and what is wrong with them as bytes."""
    try:
        data = locations.read_bytes(locations.join_inside(root, segment.path))
    except FileNotFoundError:
        return None, "missing"
    except ValueError as error:
        return None, str(error)
    if len(data) != segment.bytes:
        return data, f"has {len(data)} bytes, the manifest says {segment.bytes}"
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        return data, "its sha256 is not the manifest's: its bytes were changed"
    return data, None
