"""A version of a dataset, pinned: what a reader keeps of its manifest, and takes to its workers."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.storage import locations
from pipeline.storage.id_index import IndexSegment
from pipeline.storage.locations import redact_url
from pipeline.storage.manifest import open_manifest


@dataclass(frozen=True)
class PinnedShard:
    """A shard: its path in the dataset folder, its rows, the bytes of its file."""

    path: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class PinnedVersion:
    """One version: where it is, what its embeddings (n, d) are, its shards, its id index."""

    root: str
    version: str
    kind: str
    dimension: int
    dtype: str
    shards: tuple[PinnedShard, ...]
    index: tuple[IndexSegment, ...] | None

    @property
    def shown(self) -> str:
        """The version for a message, without credentials."""
        return f"version {self.version} of {redact_url(self.root)}"


def pin(path: str, version: str | None) -> PinnedVersion:
    """Return a version of the dataset at `path`, the one that is current now by default.

    Raises:
        ValueError: if there is no such dataset or version, or its manifest is damaged.
    """
    root = locations.absolute(str(path))
    manifest = open_manifest(root, version)
    return PinnedVersion(
        root=root,
        version=manifest.version,
        kind=manifest.kind,
        dimension=manifest.dimension,
        dtype=manifest.dtype,
        shards=tuple(
            PinnedShard(receipt.path, receipt.rows, receipt.bytes) for receipt in manifest.receipts
        ),
        index=manifest.index,
    )


class ShardError(ValueError):
    """A shard that a version names cannot be read as it was written."""


def shard_error(root: str, path: str, why: str) -> ShardError:
    """Return the error that names a shard and why it cannot be read."""
    # Not its constructor: torch makes a worker's error anew from a text.
    where = locations.join(redact_url(root), path)
    return ShardError(f"cannot read the shard {where}: {why}; `anisoalign verify` says more")
