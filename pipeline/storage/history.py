"""The versions of a dataset: what each holds, how two differ, going back to one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage import locations
from pipeline.storage.lease import Lease
from pipeline.storage.locations import StoreError, redact_url
from pipeline.storage.manifest import (
    Manifest,
    content_digest,
    load_version,
    open_manifest,
    publish,
    read_pointer,
    read_version,
    versions,
)
from pipeline.storage.receipts import Receipt
from pipeline.storage.shards import missing_files

_READERS = 8


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """One version in figures; `added`, `removed` and `kept` count units against its parent.

    They are None in manifests of earlier releases. `problem` says why a manifest can't be read;
    the figures are 0 then.
    """

    version: str
    current: bool
    created: str = ""
    run: str = ""
    parent: str | None = None
    rows: int = 0
    units: int = 0
    rejected: int = 0
    added: int | None = None
    removed: int | None = None
    kept: int | None = None
    aligner: str | None = None
    drift: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """Units and rows that one version has and the other hasn't, or that both have."""

    added_units: int = 0
    added_rows: int = 0
    removed_units: int = 0
    removed_rows: int = 0
    kept_units: int = 0
    kept_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two versions differ.

    `rewritten_units` are kept ones with another shard; `files` counts by source file, in order
    of path; `settings` has the keys of encoder, aligner and config that differ, as
    (older, newer), None where one has no such key.
    """

    older: str
    newer: str
    total: Change
    rewritten_units: int
    files: dict[str, Change] = field(default_factory=dict)
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def describe(root: str, progress: Callable[[int, int], None] | None = None) -> list[VersionSummary]:
    """Return all versions of a dataset, oldest first, those that cannot be read too.

    `progress` is called with (versions done, versions).

    Raises:
        ValueError: if there is no dataset.
    """
    names = versions(root)
    try:
        current = read_pointer(root).version
    except StoreError:
        raise
    except ValueError:
        if not names:
            raise
        current = ""  # damaged: the versions are there to go back to

    def summary(name: str) -> VersionSummary:
        try:
            manifest, _ = load_version(root, name)
        except StoreError:
            raise
        except ValueError as error:
            return VersionSummary(version=name, current=name == current, problem=str(error))
        return summarised(manifest, name == current)

    found: list[VersionSummary] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for one in pool.map(summary, names):
            found.append(one)
            if progress is not None:
                progress(len(found), len(names))
    return found


def summarised(manifest: Manifest, current: bool) -> VersionSummary:
    """Return a version in figures."""
    counts = {change: len(units) for change, units in manifest.changes.items()}
    fingerprint = (manifest.aligner or {}).get("fingerprint")
    return VersionSummary(
        version=manifest.version,
        current=current,
        created=manifest.created,
        run=manifest.run,
        parent=manifest.parent,
        rows=manifest.rows,
        units=manifest.units,
        rejected=sum(manifest.quarantined.values()),
        added=counts.get("added"),
        removed=counts.get("removed"),
        kept=counts.get("kept"),
        aligner=None if fingerprint is None else str(fingerprint),
        drift=manifest.drift,
    )


def difference(root: str, older: str, newer: str | None = None) -> Difference:
    """Compare two versions of a dataset; `newer` is the current one if it isn't named.

    Raises:
        ValueError: if a version isn't there or its manifest is damaged.
    """
    before, after = open_manifest(root, older), open_manifest(root, newer)
    old = {receipt.unit: receipt for receipt in before.receipts}
    new = {receipt.unit: receipt for receipt in after.receipts}
    counted: dict[str, Counter[str]] = {}

    def count(receipt: Receipt, change: str) -> None:
        where = str(receipt.source.get("path", "unknown"))
        counts = counted.setdefault(where, Counter())
        counts[f"{change}_units"] += 1
        counts[f"{change}_rows"] += receipt.rows

    for unit, receipt in new.items():
        count(receipt, "kept" if unit in old else "added")
    for unit, receipt in old.items():
        if unit not in new:
            count(receipt, "removed")
    total = sum(counted.values(), Counter())
    return Difference(
        older=before.version,
        newer=after.version,
        total=Change(**total),
        rewritten_units=sum(
            old[unit].sha256 != receipt.sha256 for unit, receipt in new.items() if unit in old
        ),
        files={path: Change(**counts) for path, counts in sorted(counted.items())},
        settings=_differing(_settings(before), _settings(after)),
    )


def rollback(root: str, version: str, run_id: str) -> Manifest:
    """Make a version the current one again and return its manifest; nothing is deleted.

    The next version is still numbered after the highest there is.

    Raises:
        ValueError: if the version isn't there, was changed, or files of it are missing.
        LeaseHeldError: if another command is writing the dataset.
    """
    read_version(root, version)  # before a lease makes a folder where no dataset is
    with Lease.acquire(root, run_id=run_id, command="rollback") as lease:
        manifest, sha256 = read_version(root, version)
        if not version.endswith(content_digest(manifest)[:8]):
            raise ValueError(
                f"version {version} of {redact_url(root)} was changed after it was written; "
                "choose another one"
            )
        missing = missing_files(root, manifest.files)
        if missing:
            raise ValueError(
                f"version {version} of {redact_url(root)} is not whole: missing or of another "
                f"size are {locations.listed(missing, 5)}; choose another one"
            )
        publish(root, manifest, sha256, lease.check)
    return manifest


def _settings(manifest: Manifest) -> dict[str, Any]:
    sections = {
        "encoder": manifest.encoder,
        "aligner": manifest.aligner or {},
        "config": manifest.config,
    }
    return dict(_flat("", sections))


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, one in value.items():
        if isinstance(one, Mapping):
            yield from _flat(f"{prefix}{key}.", one)
        else:
            yield f"{prefix}{key}", one


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    def text(settings: Mapping[str, Any], key: str) -> str | None:
        return json.dumps(settings[key], sort_keys=True) if key in settings else None

    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if text(before, key) != text(after, key)
    }
