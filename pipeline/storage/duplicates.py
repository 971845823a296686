"""Ids and captions that several units have, by 128-bit hashes: the first unit keeps them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import ID, REJECT, TEXT
from pipeline.storage.columns import Mask

Hashes = npt.NDArray[np.uint64]

_PART_BITS = 4
"""Hashes are sorted a 16th at a time, by their first bits: sorting takes four times their room."""


def hash_ids(ids: Sequence[str]) -> Hashes:
    """Return the 128-bit blake2b hashes (n, 2) of ids."""
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=16).digest() for one in ids)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def row_hashes(table: pa.Table, *, texts: bool = False) -> Hashes:
    """Return the hashes (n, 2) of the ids of a unit's good rows, in row order.

    With `texts` (n, 4): those of their captions, as `normalised`, stand beside them; a row without
    a caption is like no other.
    """
    good = table.column(REJECT).is_null()
    names = table.column(ID).filter(good).to_pylist()
    ids = hash_ids(names)
    if not texts:
        return ids
    there = TEXT in table.column_names
    captions = table.column(TEXT).filter(good).to_pylist() if there else [None] * len(names)
    keys = [
        f"id {name}" if text is None else f"text {normalised(text)}"
        for name, text in zip(names, captions, strict=True)
    ]
    return np.hstack([ids, hash_ids(keys)])


def normalised(text: str) -> str:
    """Return a caption as two are compared: compatibility form, without case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True, eq=False)
class SharedHashes:
    """The hashes (m, 2) of what more than one unit has, sorted, and who keeps each.

    `keepers` indexes `unit_keys` (m,). Small: what one unit only has is not held.
    """

    hashes: Hashes
    keepers: npt.NDArray[np.int64]
    unit_keys: tuple[str, ...]

    @classmethod
    def from_units(cls, units: Sequence[tuple[str, Hashes]]) -> SharedHashes:
        """Find what several of the units (key, hashes (n, 2)) have; the first of them keeps it."""
        arrays = [hashes for _, hashes in units]
        parts = [_shared(arrays, part) for part in range(1 << _PART_BITS)]
        owners = np.concatenate([part_owners for _, part_owners in parts])
        used, keepers = np.unique(owners, return_inverse=True)
        return cls(
            hashes=np.concatenate([part_hashes for part_hashes, _ in parts]),
            keepers=keepers.astype(np.int64),
            unit_keys=tuple(units[index][0] for index in used),
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def renamed(self, keys: Mapping[str, str]) -> SharedHashes:
        """Return the same with other keys for the units."""
        return replace(self, unit_keys=tuple(keys[key] for key in self.unit_keys))

    def rejected(self, unit_key: str, hashes: Hashes) -> Mask:
        """Return the mask (n,) of a unit's hashes (n, 2) that another unit keeps."""
        mine = self.unit_keys.index(unit_key) if unit_key in self.unit_keys else -1
        rejected = np.zeros(len(hashes), dtype=np.bool_)
        places = np.searchsorted(self.hashes[:, 0], hashes[:, 0])
        pending = np.arange(len(hashes))
        while True:
            # Hashes with the same first half stand side by side: step until the half differs.
            pending = pending[places[pending] < len(self.hashes)]
            there = self.hashes[places[pending]]
            pending = pending[there[:, 0] == hashes[pending, 0]]
            if not len(pending):
                return rejected
            at = places[pending]
            found = self.hashes[at, 1] == hashes[pending, 1]
            rejected[pending[found]] = self.keepers[at[found]] != mine
            pending = pending[~found]
            places[pending] += 1


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Ids that several units have, and captions (of rows that keep their id) if they are looked at.

    Hashes are those of `row_hashes`.
    """

    ids: SharedHashes
    texts: SharedHashes | None = None

    @classmethod
    def from_units(cls, units: Sequence[tuple[str, Hashes]]) -> Duplicates:
        """Find the ids, and the captions if hashes are (n, 4), that several units have."""
        ids = SharedHashes.from_units([(key, hashes[:, :2]) for key, hashes in units])
        if not any(hashes.shape[1] > 2 for _, hashes in units):
            return cls(ids)
        left = [(key, hashes[~ids.rejected(key, hashes[:, :2])]) for key, hashes in units]
        return cls(ids, SharedHashes.from_units([(key, hashes[:, 2:]) for key, hashes in left]))

    def __len__(self) -> int:
        return len(self.ids) + (0 if self.texts is None else len(self.texts))

    def rejected(self, unit_key: str, hashes: Hashes) -> tuple[Mask, Mask]:
        """Return which rows (n,) of a unit lose their id, and which others their caption."""
        by_id = self.ids.rejected(unit_key, hashes[:, :2])
        by_text = np.zeros(len(hashes), dtype=np.bool_)
        if self.texts is not None:
            by_text[~by_id] = self.texts.rejected(unit_key, hashes[~by_id, 2:])
        return by_id, by_text

    def renamed(self, keys: Mapping[str, str]) -> Duplicates:
        """Return the same with other keys for the units."""
        texts = None if self.texts is None else self.texts.renamed(keys)
        return Duplicates(self.ids.renamed(keys), texts)


def _shared(arrays: Sequence[Hashes], part: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Return the hashes that several arrays have, of those whose first bits are `part`, sorted.

    The index of the first array that has each comes with them.
    """
    shift = np.uint64(64 - _PART_BITS)
    chosen = [hashes[(hashes[:, 0] >> shift) == part] for hashes in arrays]
    owners = np.repeat(np.arange(len(chosen)), [len(hashes) for hashes in chosen])
    every = np.concatenate([np.empty((0, 2), np.uint64), *chosen])
    order = np.lexsort((owners, every[:, 1], every[:, 0]))
    every, owners = every[order], owners[order]
    same = (every[1:] == every[:-1]).all(axis=1)
    starts_run = np.concatenate([[True], ~same])[: len(every)]
    goes_on = np.concatenate([same, [False]])[: len(every)]
    kept = starts_run & goes_on
    return every[kept], owners[kept]
