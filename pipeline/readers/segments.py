"""Finding ids in the segments of an id index, by short reads of their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.readers.ranges import LocalFile, RangeReader, RemoteFile
from pipeline.readers.version import PinnedVersion
from pipeline.storage.duplicates import Hashes
from pipeline.storage.id_index import (
    ENTRIES_PER_FENCE,
    IndexSegment,
    SegmentLayout,
    array_of,
    segment_layout,
)
from pipeline.storage.locations import join, redact_url

_OPEN_SEGMENTS = 512
"""Half of what a process may usually open. A search goes through all segments."""
_QUERIES_AT_ONCE = 512
"""Each reads a block of 256 entries (6 kB), so 3 MB at most."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Found:
    """Where ids of one segment stand: their places among those asked, and for each (m,) the row.

    `shards` are numbers in `paths`; `offsets` of the embedding in the shard's file, -1 where it has
    to be decoded; `groups` the row group and `starts` its first row.
    """

    paths: tuple[str, ...]
    asked: Integers
    shards: Integers
    rows: Integers
    offsets: Integers
    groups: Integers
    starts: Integers


class IndexReader:
    """Looks hashes up in a version's segments; holds the fences and row groups of all of them.

    They take 8 bytes for 256 ids and 40 for a row group: 45 MB for a thousand million ids. A
    segment on this machine's file systems is checked against its sha256 when it is first used.
    One in an object store is not: it would be a download of 24 bytes an id in every process.
    """

    def __init__(self, version: PinnedVersion) -> None:
        assert version.index is not None, "only versions with an index are read by id"
        self._version = version
        self._index = version.index
        row_bytes = version.dimension * (2 if version.dtype == "float16" else 4)
        self._row_bytes = row_bytes
        self._files = RangeReader(version.root, _OPEN_SEGMENTS)
        self._open: dict[str, _Segment] = {}

    def find(self, hashes: Hashes) -> Iterator[Found]:
        """Yield, by segment, where the ids with these hashes (n, 2) stand; unknown ones in none.

        Raises:
            ValueError: if a segment is missing, damaged, or cannot be read.
        """
        pending = np.argsort(hashes[:, 0], kind="stable")
        for entry in self._index:
            if not len(pending):
                return
            segment, file = self._segment(entry)
            places = np.full(len(pending), -1, np.int64)
            for start in range(0, len(pending), _QUERIES_AT_ONCE):
                part = slice(start, start + _QUERIES_AT_ONCE)
                try:
                    places[part] = segment.search(file, hashes[pending[part]])
                except OSError as error:
                    raise _unusable(self._version, entry, str(error)) from error
            hit = places >= 0
            if hit.any():
                yield segment.located(pending[hit], places[hit], self._row_bytes)
                pending = pending[~hit]

    def _segment(self, entry: IndexSegment) -> tuple[_Segment, LocalFile | RemoteFile]:
        try:
            file = self._files.file(entry.path, entry.bytes)
            found = self._open.get(entry.path)
            if found is None:
                found = _Segment(file, entry)
                if isinstance(file, LocalFile) and file.sha256() != entry.sha256:
                    raise ValueError("its bytes are not those that were written")
                self._open[entry.path] = found
        except FileNotFoundError:
            raise _unusable(self._version, entry, "it is missing") from None
        except (OSError, ValueError) as error:
            raise _unusable(self._version, entry, str(error)) from error
        return found, file

    def __getstate__(self) -> PinnedVersion:
        return self._version

    def __setstate__(self, version: PinnedVersion) -> None:
        self.__init__(version)  # type: ignore[misc]


class _Segment:
    """A segment that was opened: its fences and row groups; its entries stay in its file."""

    def __init__(self, file: LocalFile | RemoteFile, entry: IndexSegment) -> None:
        layout = segment_layout(file.read, entry.bytes)
        if layout.shards != entry.shards:
            raise ValueError("it is of other shards than its manifest says")
        self._shards = layout.shards
        self._first, self._stop, shape = layout.arrays["entries"]
        self._count = shape[0]
        self._fences = _whole_array(file, layout, "fences")
        groups = _whole_array(file, layout, "groups")
        self._offsets = groups[:, 2]
        self._starts = groups[:, 1]
        self._keys = (groups[:, 0] << 32) | groups[:, 1]
        firsts = np.searchsorted(groups[:, 0], np.arange(len(self._shards)))
        self._ordinals = np.arange(len(groups)) - firsts[groups[:, 0]]

    def search(self, file: LocalFile | RemoteFile, hashes: Hashes) -> Integers:
        """Return shard << 32 | row of each hash (m, 2), -1 for those not here; in order of hash."""
        if not self._count:
            return np.full(len(hashes), -1, np.int64)
        entries = self._near(file, hashes[:, 0])
        firsts = np.ascontiguousarray(entries[:, 0])
        at = np.searchsorted(firsts, hashes[:, 0])
        places = np.full(len(hashes), -1, np.int64)
        pending = np.arange(len(hashes))
        while True:
            # Equal first halves stand side by side: step until the half differs.
            pending = pending[at[pending] < len(entries)]
            pending = pending[firsts[at[pending]] == hashes[pending, 0]]
            if not len(pending):
                return places
            found = entries[at[pending], 1] == hashes[pending, 1]
            places[pending[found]] = entries[at[pending[found]], 2].astype(np.int64)
            pending = pending[~found]
            at[pending] += 1

    def _near(
        self, file: LocalFile | RemoteFile, firsts: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """Return the entries (k, 3), sorted, of all blocks where these first halves can stand."""
        low = np.maximum(np.searchsorted(self._fences, firsts, side="left") - 1, 0)
        high = np.searchsorted(self._fences, firsts, side="right")
        wanted = np.zeros(len(self._fences) + 1, np.int64)
        np.add.at(wanted, low, 1)
        np.add.at(wanted, high, -1)
        edges = np.diff((np.cumsum(wanted)[:-1] > 0).astype(np.int8), prepend=0, append=0)
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        size = 24 * ENTRIES_PER_FENCE
        data = file.read_each(
            [
                (self._first + start * size, min(self._first + stop * size, self._stop))
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            ]
        )
        return array_of(b"".join(data), "entries", (-1, 3))

    def located(self, asked: Integers, places: Integers, row_bytes: int) -> Found:
        """Return what the places (m,) of rows mean, for the queries `asked` (m,)."""
        rows = places & 0xFFFFFFFF
        groups = np.searchsorted(self._keys, places, side="right") - 1
        starts, offsets = self._starts[groups], self._offsets[groups]
        return Found(
            paths=self._shards,
            asked=asked,
            shards=places >> 32,
            rows=rows,
            offsets=np.where(offsets < 0, -1, offsets + (rows - starts) * row_bytes),
            groups=self._ordinals[groups],
            starts=starts,
        )


def _whole_array(
    file: LocalFile | RemoteFile, layout: SegmentLayout, name: str
) -> npt.NDArray[Any]:
    start, stop, shape = layout.arrays[name]
    return array_of(file.read(start, stop), name, shape)


def _unusable(version: PinnedVersion, entry: IndexSegment, why: str) -> ValueError:
    where = join(redact_url(version.root), entry.path)
    return ValueError(
        f"cannot read the id index {where}: {why}; `anisoalign verify` says more, and the next run "
        "that writes this dataset makes it anew"
    )
