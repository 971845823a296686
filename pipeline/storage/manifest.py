"""Manifests: what a run wrote, as immutable JSON, and the pointer to the current one.

A reader starts at `current.json`, goes to `versions/<version>.json` and from there to the shards,
so half a run is never visible and an old version stays readable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.names import DEFAULT_NAMES, Names
from pipeline.schema import SCHEMA_VERSION, RejectReason
from pipeline.storage import locations
from pipeline.storage.card import write_card
from pipeline.storage.corpus import Unit
from pipeline.storage.id_index import IndexSegment
from pipeline.storage.locations import StoreError, redact_url
from pipeline.storage.manifest_checks import check_fields
from pipeline.storage.places import redacted
from pipeline.storage.receipts import (
    JsonText,
    Kinds,
    Receipt,
    check_counts,
    checked,
    parsed,
    source_of,
)

Kind = Literal["text-embeddings", "image-embeddings", "substitutes"]

POINTER = "current.json"
VERSIONS = "versions"
UNIT_ROWS = "unit_rows"
"""In a manifest's aligner: false where its method gives rows that are not of unit norm."""
_VERSION = re.compile(r"[0-9]{6,18}-[0-9a-f]{8}")
_KINDS: Kinds = {
    "version": (str,),
    "parent": (str, type(None)),
    "created": (str,),
    "kind": (str,),
    "schema_version": (int,),
    "dimension": (int,),
    "dtype": (str,),
    "rows": (int,),
    "units": (int,),
    "quarantined": (dict,),
    "duplicate_units": (list,),
    "skipped_files": (list,),
    "receipts": (list,),
    "source": (dict,),
    "config": (dict,),
    "encoder": (dict,),
    "aligner": (dict, type(None)),
    "software": (dict,),
}
_OPTIONAL: Kinds = {
    "run": (str,),
    "changes": (dict,),
    "drift": (dict, type(None)),
    "names": (dict,),
    "index": (list, type(None)),
}
"""Fields that manifests of earlier releases don't have."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a dataset; totals are over all receipts and, for rejects, duplicate units.

    `source` says which corpus it was made from: path, columns and the digest of the plan. `run` is
    the run's id; `changes` the keys of units "added", "removed" and "kept" against the parent,
    empty in manifests of earlier releases; `drift` what a night measured against the aligner;
    `index` the segments of the id index, None where there is none (earlier releases, embeddings);
    `names` what the sides are called, text and image in manifests of earlier releases.
    """

    version: str
    parent: str | None
    created: str
    kind: Kind
    schema_version: int
    dimension: int
    dtype: str
    rows: int
    units: int
    quarantined: dict[str, int]
    duplicate_units: tuple[dict[str, Any], ...]
    skipped_files: tuple[dict[str, Any], ...]
    receipts: tuple[Receipt, ...]
    source: dict[str, Any]
    config: dict[str, Any]
    encoder: dict[str, Any]
    aligner: dict[str, Any] | None
    software: dict[str, str]
    run: str = ""
    changes: dict[str, list[str]] = field(default_factory=dict)
    drift: dict[str, Any] | None = None
    index: tuple[IndexSegment, ...] | None = None
    names: Names = DEFAULT_NAMES

    @property
    def files(self) -> dict[str, int]:
        """The sizes in bytes of all shards, quarantine shards and index segments, by path."""
        files = {path: size for one in self.receipts for path, size in one.files.items()}
        return files | {segment.path: segment.bytes for segment in self.index or ()}

    @property
    def unit_rows(self) -> bool:
        """Whether embeddings are of unit norm: all are, but for methods that say otherwise."""
        return self.aligner is None or self.aligner.get(UNIT_ROWS) is not False

    @property
    def ids_checked(self) -> bool:
        """Whether units were looked at for ids that they share: all are, unless told not to be."""
        rejects = self.config.get("rejects")
        return not isinstance(rejects, Mapping) or rejects.get("check_ids") is not False

    def to_json(self) -> str:
        """Return the manifest as indented JSON, keys sorted."""
        return json.dumps(
            dataclasses.asdict(self), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: JsonText) -> Manifest:
        """Return the manifest that `to_json` wrote; raises ValueError if it is not one."""
        values = checked(parsed(text, "manifest"), _KINDS, "manifest", _OPTIONAL)
        check_counts(values["quarantined"], "manifest")
        check_fields(values)
        values["names"] = Names.from_mapping(values.get("names"))
        values["receipts"] = tuple(Receipt.from_dict(one) for one in values["receipts"])
        values["duplicate_units"] = tuple(values["duplicate_units"])
        values["skipped_files"] = tuple(values["skipped_files"])
        if values.get("index") is not None:
            values["index"] = tuple(IndexSegment.from_dict(one) for one in values["index"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What `current.json` says: the version and the sha256 of its manifest file."""

    version: str
    sha256: str


def commit(
    root: str,
    *,
    kind: Kind,
    dimension: int,
    dtype: str,
    receipts: Sequence[Receipt],
    source: Mapping[str, Any],
    config: Mapping[str, Any],
    encoder: Mapping[str, Any],
    aligner: Mapping[str, Any] | None = None,
    software: Mapping[str, str] | None = None,
    duplicate_units: Sequence[Unit] = (),
    skipped_files: Sequence[Mapping[str, str]] = (),
    run_id: str = "",
    drift: Mapping[str, Any] | None = None,
    index: Sequence[IndexSegment] | None = None,
    names: Names = DEFAULT_NAMES,
    before_publish: Callable[[], None] | None = None,
) -> Manifest:
    """Publish a new version of the dataset in `root` and return its manifest.

    Where nothing differs from the current version (shards, source, encoder, aligner, names,
    duplicates, skipped files, ids checked now, an id index now), that one stays and is returned.
    URLs lose their credentials on the way. One writer at a time, the caller sees to it: the
    version's number is the highest there plus one, and a manifest is never written over.
    `before_publish` is called right before manifest, card and pointer are written; what it raises
    leaves the current version current.

    Raises:
        ValueError: if the folder cannot be written, or its current manifest is damaged.
    """
    ordered = sorted(receipts, key=lambda receipt: receipt.path)
    quarantined: Counter[str] = Counter()
    for receipt in ordered:
        quarantined.update(receipt.quarantined)
    duplicate_rows = sum(unit.rows for unit in duplicate_units)
    if duplicate_rows:
        quarantined[RejectReason.DUPLICATE_ID.value] += duplicate_rows
    current = current_manifest(root)
    draft = Manifest(
        version="",
        parent=current.version if current else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        schema_version=SCHEMA_VERSION,
        dimension=dimension,
        dtype=dtype,
        rows=sum(receipt.rows for receipt in ordered),
        units=len(ordered),
        quarantined=dict(sorted(quarantined.items())),
        duplicate_units=tuple(
            {"unit": unit.key, **source_of(unit), "rows": unit.rows} for unit in duplicate_units
        ),
        skipped_files=redacted(tuple(dict(one) for one in skipped_files)),
        receipts=tuple(ordered),
        source=redacted(dict(source)),
        config=redacted(dict(config)),
        encoder=redacted(dict(encoder)),
        aligner=None if aligner is None else redacted(dict(aligner)),
        software=dict(software or {}),
        run=run_id,
        changes=_changes(current, ordered),
        drift=None if drift is None else redacted(dict(drift)),
        index=None if index is None else tuple(sorted(index, key=lambda segment: segment.path)),
        names=names,
    )
    digest = content_digest(draft)
    same = current is not None and content_digest(current) == digest
    if current is not None and same and _has_all_of(current, draft):
        return current
    check = before_publish or _nothing
    number = _next_number(root)
    while True:
        manifest = dataclasses.replace(draft, version=f"{number:06d}-{digest[:8]}")
        data = manifest.to_json().encode()
        check()
        where = locations.join_inside(root, f"{VERSIONS}/{manifest.version}.json")
        if locations.create_exclusively(where, data):
            break
        number += 1  # another's, who was taken for dead
    publish(root, manifest, hashlib.sha256(data).hexdigest(), check)
    return manifest


def _has_all_of(current: Manifest, draft: Manifest) -> bool:
    """Return whether a version of the same content has what a new one would add to it."""
    checked_ids = current.ids_checked or not draft.ids_checked
    # Other settings may give the same bytes; the version has to say the ones that hold now.
    made_alike = [one.fingerprint for one in current.receipts] == [
        one.fingerprint for one in draft.receipts
    ]
    return made_alike and checked_ids and (draft.index is None or draft.index == current.index)


def publish(root: str, manifest: Manifest, sha256: str, check: Callable[[], None]) -> None:
    """Make a version that is there, with its manifest file's sha256, the current one.

    The card goes first: after a crash between the two it names shards that are there. `check` is
    called before each, since either may take minutes on a store that fails.
    """
    check()
    write_card(root, manifest)
    pointer = {"version": manifest.version, "sha256": sha256}
    check()
    locations.write_bytes(locations.join(root, POINTER), json.dumps(pointer).encode())


def _nothing() -> None:
    """What is checked where nobody else can write."""


def read_pointer(root: str) -> Pointer:
    """Return what `current.json` points at.

    Raises:
        ValueError: if there is none or it is damaged.
    """
    where = locations.join(root, POINTER)
    try:
        value = parsed(locations.read_bytes(where), "pointer")
        said = checked(value, {"version": (str,), "sha256": (str,)}, "pointer")
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no dataset in {redact_url(root)}: {POINTER} is missing (no run has finished)"
        ) from error
    except StoreError:
        raise
    except ValueError as error:
        raise ValueError(
            f"{redact_url(where)} is damaged: {error}; `anisoalign versions list` names the "
            "versions, `anisoalign rollback` makes one of them current"
        ) from error
    return Pointer(**said)


def load_version(root: str, version: str) -> tuple[Manifest, str]:
    """Return a version's manifest and the sha256 of its file; where its paths lead is not checked.

    Raises:
        ValueError: if there is none or it is damaged.
    """
    if not _VERSION.fullmatch(version):
        raise ValueError(f"{version!r} is not the name of a version (like 000001-0123abcd)")
    where = locations.join_inside(root, f"{VERSIONS}/{version}.json")
    try:
        data = locations.read_bytes(where)
        manifest = Manifest.from_json(data)
        if manifest.version != version:
            raise ValueError(f"it says that it is version {manifest.version!r}")
    except FileNotFoundError as error:
        raise ValueError(f"{redact_url(root)} has no version {version}") from error
    except StoreError:
        raise
    except ValueError as error:
        raise ValueError(f"{redact_url(where)} is damaged: {error}") from error
    return manifest, hashlib.sha256(data).hexdigest()


def read_version(root: str, version: str) -> tuple[Manifest, str]:
    """Return a version's manifest and the sha256 of its file.

    Raises:
        ValueError: as `load_version` does, if it names paths outside `root`, or if a newer
            release wrote it.
    """
    manifest, sha256 = load_version(root, version)
    for path in manifest.files:
        locations.join_inside(root, path)
    if manifest.schema_version > SCHEMA_VERSION:
        raise ValueError(
            f"{redact_url(root)} has schema version {manifest.schema_version}, newer than "
            f"{SCHEMA_VERSION}; update anisoalign"
        )
    return manifest, sha256


def open_manifest(root: str, version: str | None = None) -> Manifest:
    """Return the manifest of the current version, or of the one named.

    Raises:
        ValueError: if there is none, or as `read_version` does.
    """
    if version is not None:
        return read_version(root, version)[0]
    pointer = read_pointer(root)
    manifest, sha256 = read_version(root, pointer.version)
    if sha256 != pointer.sha256:
        raise ValueError(
            f"{VERSIONS}/{pointer.version}.json in {redact_url(root)} was changed after it was "
            "written; `anisoalign verify` says more"
        )
    return manifest


def current_manifest(root: str) -> Manifest | None:
    """Return the manifest of the current version, None where nothing was published.

    Raises:
        ValueError: as `open_manifest` does, for one that is there.
    """
    return open_manifest(root) if locations.exists(locations.join(root, POINTER)) else None


def versions(root: str) -> list[str]:
    """Return the names of all versions in `root`, oldest first."""
    names = [entry.name for entry in locations.list_files(locations.join(root, VERSIONS))]
    found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(
        (name for name in found if _VERSION.fullmatch(name)),
        key=lambda name: int(name.split("-")[0]),
    )


def _next_number(root: str) -> int:
    names = versions(root)
    return int(names[-1].split("-")[0]) + 1 if names else 1


def content_digest(manifest: Manifest) -> str:
    """Return the digest of what makes a version differ from another: not times, not config.

    Its first eight digits stand in the version's name.
    """
    content = [
        manifest.kind,
        manifest.schema_version,
        manifest.dimension,
        manifest.dtype,
        [[one.unit, one.sha256, one.quarantine_sha256] for one in manifest.receipts],
        sorted([one["unit"], one["rows"]] for one in manifest.duplicate_units),
        sorted(str(one.get("path")) for one in manifest.skipped_files),
        manifest.source,
        manifest.encoder,
        manifest.aligner,
    ]
    if not manifest.names.default:  # else as in earlier releases
        content.append(dataclasses.asdict(manifest.names))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _changes(parent: Manifest | None, receipts: Sequence[Receipt]) -> dict[str, list[str]]:
    before = {receipt.unit for receipt in parent.receipts} if parent else set()
    now = {receipt.unit for receipt in receipts}
    found = {"added": now - before, "removed": before - now, "kept": now & before}
    return {change: sorted(units) for change, units in found.items()}
