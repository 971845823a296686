"""Ids that several units have: found by 128-bit hashes, kept by the first unit in plan order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import ID, REJECT
from pipeline.storage.columns import Mask

Hashes = npt.NDArray[np.uint64]

_PART_BITS = 4
"""Hashes are sorted a 16th at a time, by their first bits: sorting takes four times their room."""


def hash_ids(ids: Sequence[str]) -> Hashes:
    """Return the 128-bit blake2b hashes (n, 2) of ids."""
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=16).digest() for one in ids)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def id_hashes(table: pa.Table) -> Hashes:
    """Return the hashes (n, 2) of the ids of a unit's good rows, in row order."""
    return hash_ids(table.column(ID).filter(table.column(REJECT).is_null()).to_pylist())


@dataclass(frozen=True, eq=False)
class DuplicateIds:
    """The ids seen in more than one unit, as sorted hashes (m, 2), and who keeps each.

    `keepers` indexes `unit_keys` (m,). Small: ids of one unit only are not held.
    """

    hashes: Hashes
    keepers: npt.NDArray[np.int64]
    unit_keys: tuple[str, ...]

    @classmethod
    def from_units(cls, units: Sequence[tuple[str, Hashes]]) -> DuplicateIds:
        """Find the ids that several of the units (key, hashes (n, 2)) have.

        The first unit in the order given keeps an id: give units whose shards are already written
        first, then the others in plan order.
        """
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

    def rejected(self, unit_key: str, hashes: Hashes) -> Mask:
        """Return the mask (n,) of a unit's ids, given as hashes (n, 2), that another keeps."""
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
