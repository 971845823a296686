"""Embeddings by id, straight from the shards: no copy of the dataset, in memory or on disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.readers.ranges import ChangedFileError, RangeReader
from pipeline.readers.segments import Found, IndexReader
from pipeline.readers.version import PinnedVersion, pin, shard_error
from pipeline.schema import EMBEDDING
from pipeline.storage import locations
from pipeline.storage.duplicates import hash_ids
from pipeline.storage.locations import StoreError, listed
from pipeline.storage.shards import stored_embeddings

_DECODED_BYTES = 32 * 2**20
"""Decoded row groups that stay in memory: the last one, and others while they fit."""
_OPEN_SHARDS = 128
_NAMED = 5

Mask = npt.NDArray[np.bool_]


class SubstituteLookup:
    """Finds the embeddings of ids in one version of a dataset of substitutes.

    ::

        lookup = SubstituteLookup("/data/run/dataset")
        lookup.lookup(["caption-17", "caption-4"])  # (2, d), of the dataset's dtype
        lookup.contains(["caption-17", "who?"])     # array([ True, False])

    The version (the current one, if none is named) is chosen now and stays, whatever is published
    later. Memory holds 45 bytes for each thousand rows: an id is found by short reads of the
    version's id index, and its embedding by one read of its shard (shards of float32, and those of
    earlier releases, are decoded a row group at a time). A file system's index is checked against
    its sha256 when it is first used; that a shard's bytes changed, `anisoalign verify` tells. It
    may be pickled, and used in DataLoader workers, forked or spawned; one thread at a time.

    Raises:
        ValueError: if there is no such version, or it has no id index.
    """

    def __init__(self, path: str | os.PathLike[str], version: str | None = None) -> None:
        pinned = pin(os.fspath(path), version)
        if pinned.index is None:
            if pinned.kind != "substitutes":
                raise ValueError(
                    f"{pinned.shown} holds {pinned.kind}; only datasets of substitutes are found "
                    "by id"
                )
            raise ValueError(
                f"{pinned.shown} has no id index: an earlier release wrote it. Run the command "
                "that writes it (`anisoalign nightly` or `anisoalign synthesize`) once more: the "
                "version that it publishes has one, and no shard is written again"
            )
        self._set(pinned)

    def _set(self, pinned: PinnedVersion) -> None:
        self.pinned = pinned
        self._index = IndexReader(pinned)
        self._files = RangeReader(pinned.root, _OPEN_SHARDS)
        self._bytes = {shard.path: shard.bytes for shard in pinned.shards}
        self._decoded: OrderedDict[tuple[str, int], npt.NDArray[Any]] = OrderedDict()

    @property
    def version(self) -> str:
        """The version that is read."""
        return self.pinned.version

    @property
    def dimension(self) -> int:
        """The width d of an embedding."""
        return self.pinned.dimension

    def __len__(self) -> int:
        """Return the number of rows of the version."""
        return sum(shard.rows for shard in self.pinned.shards)

    def contains(self, ids: Sequence[str]) -> Mask:
        """Return the mask (n,) of the ids that the version has."""
        known = np.zeros(len(ids), np.bool_)
        for found in self._index.find(_hashes(ids)):
            known[found.asked] = True
        return known

    def lookup(self, ids: Sequence[str]) -> npt.NDArray[Any]:
        """Return the embeddings (n, d) of ids in the order asked, in the stored dtype.

        An id may be asked for several times. One that several shards have, where ids were not
        checked, gets one of its rows, always the same.

        Raises:
            ValueError: if an id is unknown, or a shard is missing, changed or cannot be read.
        """
        found = list(self._index.find(_hashes(ids)))
        self._check_known(ids, found)
        rows = np.empty((len(ids), self.pinned.dimension), self.pinned.dtype)
        for one in found:
            self._read(one, rows)
        return rows

    def _check_known(self, ids: Sequence[str], found: Sequence[Found]) -> None:
        known = np.zeros(len(ids), np.bool_)
        for one in found:
            known[one.asked] = True
        if not known.all():
            unknown = list(dict.fromkeys(ids[place] for place in np.flatnonzero(~known).tolist()))
            named = listed([repr(one) for one in unknown[:_NAMED]])
            raise ValueError(
                f"{len(unknown)} of the ids asked for are not in {self.pinned.shown}: {named}"
                + (" and others" if len(unknown) > _NAMED else "")
            )

    def _read(self, found: Found, rows: npt.NDArray[Any]) -> None:
        """Fill in the rows that were found in one segment, shard by shard."""
        order = np.lexsort((found.rows, found.shards))
        edges = np.flatnonzero(np.diff(found.shards[order])) + 1
        for part in np.split(order, edges):
            path = found.paths[int(found.shards[part[0]])]
            try:
                direct = found.offsets[part] >= 0
                if direct.any():
                    self._read_direct(path, found, part[direct], rows)
                if not direct.all():
                    self._read_decoded(path, found, part[~direct], rows)
            except FileNotFoundError:
                raise shard_error(self.pinned.root, path, "it is missing") from None
            except StoreError:
                raise
            except (ChangedFileError, OSError, pa.ArrowException) as error:
                line = (str(error).splitlines() or [type(error).__name__])[0]
                raise shard_error(self.pinned.root, path, locations.redact_url(line)) from error

    def _read_direct(
        self, path: str, found: Found, part: npt.NDArray[np.int64], rows: npt.NDArray[Any]
    ) -> None:
        file = self._files.file(path, self._bytes[path])
        view = rows.view(np.uint8).reshape(-1).data
        width = rows.shape[1] * rows.itemsize
        places = (found.asked[part] * width).tolist()
        file.read_rows(found.offsets[part].tolist(), [view[at : at + width] for at in places])

    def _read_decoded(
        self, path: str, found: Found, part: npt.NDArray[np.int64], rows: npt.NDArray[Any]
    ) -> None:
        for group in np.unique(found.groups[part]).tolist():
            chosen = part[found.groups[part] == group]
            values = self._group(path, group)
            rows[found.asked[chosen]] = values[found.rows[chosen] - found.starts[chosen]]

    def _group(self, path: str, group: int) -> npt.NDArray[Any]:
        """Return the embeddings of a row group, decoded now or a little while ago."""
        values = self._decoded.pop((path, group), None)
        if values is None:
            self._files.file(path, self._bytes[path])  # has the size that it had
            url = locations.join_inside(self.pinned.root, path)
            with locations.open_for_reading(url) as file:
                parquet = pq.ParquetFile(file)
                table = parquet.read_row_group(group, columns=[EMBEDDING], use_threads=False)
            values = stored_embeddings(table)
        self._decoded[(path, group)] = values
        while len(self._decoded) > 1 and (
            sum(one.nbytes for one in self._decoded.values()) > _DECODED_BYTES
        ):
            self._decoded.popitem(last=False)
        return values

    def __getstate__(self) -> PinnedVersion:
        return self.pinned

    def __setstate__(self, pinned: PinnedVersion) -> None:
        self._set(pinned)


def _hashes(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    if isinstance(ids, str):
        raise ValueError(f"ids is the text {ids[:40]!r}; give a list of ids")
    wrong = next((one for one in ids if not isinstance(one, str)), None)
    if wrong is not None:
        raise ValueError(f"ids holds {wrong!r}, which is no text; the ids of a dataset are texts")
    return hash_ids(ids)
