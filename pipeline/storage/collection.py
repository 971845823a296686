"""Garbage collection: which files no kept version of a dataset needs, and deleting them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.storage import locations
from pipeline.storage.card import write_card
from pipeline.storage.id_hashes import IDS
from pipeline.storage.id_index import INDEX
from pipeline.storage.lease import Lease
from pipeline.storage.locations import FileEntry, StoreError, redact_url
from pipeline.storage.manifest import (
    VERSIONS,
    Manifest,
    load_version,
    open_manifest,
    read_pointer,
    versions,
)
from pipeline.storage.shards import DATA, QUARANTINE, RECEIPTS

_OURS = {
    DATA: re.compile(r"[0-9a-f]{32}\.parquet"),
    QUARANTINE: re.compile(r"[0-9a-f]{32}\.parquet"),
    RECEIPTS: re.compile(r"[0-9a-f]{32}\.json"),
    IDS: re.compile(r"(?P<unit>[0-9a-f]+)-[0-9a-f]{16}\.hashes"),
    INDEX: re.compile(r"[0-9a-f]{32}\.safetensors"),
}
"""The names that we give; a file of another name is the user's."""
_AT_ONCE = 500
_LEFTOVER_SECONDS = 3600.0
"""A process that writes still may hold younger temporary files; no write takes so long."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What a collection deletes and keeps: names of versions, oldest first, and files.

    `files` are relative to the dataset folder, receipts, hashes and index segments before shards;
    `bytes` is theirs. Manifests of dropped versions are not among them, nor the `leftovers`
    (temporary files and uploads of killed processes), which are counted as they are deleted.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    files: tuple[str, ...]
    bytes: int
    leftovers: int = 0


def plan_collection(root: str, keep: int) -> Collection:
    """Return what `collect` would delete so that `keep` versions stay; changes nothing.

    The current version stays, and the newest others. Shards that no kept version names go, those
    too that an unfinished run has written and would have gone on from.

    Raises:
        ValueError: if `keep` is below 1, there is no dataset, or a manifest is damaged.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the current version is kept, so give 1 or more")
    current = read_pointer(root).version
    names = versions(root)
    others = [name for name in names if name != current]
    stay = {current, *others[max(len(others) - keep + 1, 0) :]}
    needed = _Needed.by([_kept_manifest(root, name, current) for name in sorted(stay)])
    files = [entry for entry in _our_files(root) if not needed.covers(entry.name)]
    return Collection(
        kept=tuple(name for name in names if name in stay),
        dropped=tuple(name for name in names if name not in stay),
        files=tuple(entry.name for entry in files),
        bytes=sum(entry.size for entry in files),
    )


def collect(
    root: str, keep: int, run_id: str, progress: Callable[[int, int], None] | None = None
) -> Collection:
    """Delete what `plan_collection` finds, under the dataset's lease, and return it.

    Manifests go first: after a crash none names a shard that isn't there. Temporary files and
    uploads that killed processes left behind go too. `progress` is called with (files deleted,
    files).

    Raises:
        ValueError: as `plan_collection` does, or if a file cannot be deleted.
        LeaseHeldError: if another command is writing the dataset.
    """
    read_pointer(root)  # before a lease makes a folder where no dataset is
    with Lease.acquire(root, run_id=run_id, command="gc") as lease:
        found = plan_collection(root, keep)
        # A crash may have left the card of a version that goes now.
        write_card(root, open_manifest(root))
        # Oldest first, so that a crash leaves the newest of them.
        for name in found.dropped:
            lease.check()
            locations.remove(locations.join(root, VERSIONS, f"{name}.json"))
        for start in range(0, len(found.files), _AT_ONCE):
            lease.check()
            batch = found.files[start : start + _AT_ONCE]
            locations.remove_files(locations.join(root, name) for name in batch)
            if progress is not None:
                progress(start + len(batch), len(found.files))
        leftovers = locations.remove_leftovers(root, _LEFTOVER_SECONDS)
        for folder in (VERSIONS, *_OURS):
            url = locations.join(root, folder)
            leftovers += locations.abort_uploads(url, _LEFTOVER_SECONDS)
    return dataclasses.replace(found, leftovers=leftovers)


@dataclass(frozen=True)
class _Needed:
    """The files and planned units that kept versions name."""

    files: frozenset[str]
    units: frozenset[str]

    @classmethod
    def by(cls, manifests: Sequence[Manifest]) -> _Needed:
        files: set[str] = set()
        units: set[str] = set()
        for manifest in manifests:
            files |= manifest.files.keys()
            for receipt in manifest.receipts:
                name = receipt.path.rsplit("/", 1)[-1].removesuffix(".parquet")
                files.add(f"{RECEIPTS}/{name}.json")
                units.add(receipt.planned_unit)
        return cls(frozenset(files), frozenset(units))

    def covers(self, name: str) -> bool:
        folder, file = name.split("/", 1)
        if folder != IDS:
            return name in self.files
        match = _OURS[IDS].fullmatch(file)
        return match is not None and match["unit"] in self.units


def _kept_manifest(root: str, name: str, current: str) -> Manifest:
    if name == current:
        return open_manifest(root)
    try:
        return load_version(root, name)[0]
    except StoreError:
        raise
    except ValueError as error:
        raise ValueError(
            f"version {name} of {redact_url(root)} would be kept, but what it needs cannot be told "
            f"({error}); delete {VERSIONS}/{name}.json, or keep fewer versions"
        ) from error


def _our_files(root: str) -> Iterator[FileEntry]:
    """Yield the files that have names of ours, relative to `root`; shards come last."""
    for folder in (RECEIPTS, IDS, INDEX, DATA, QUARANTINE):
        for entry in locations.list_files(locations.join(root, folder)):
            if _OURS[folder].fullmatch(entry.name):
                yield FileEntry(url=entry.url, name=f"{folder}/{entry.name}", size=entry.size)
