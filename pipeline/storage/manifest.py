"""Receipts and manifests: what a run wrote, as immutable JSON, and the pointer to the current one.

A reader starts at `current.json`, goes to `versions/<version>.json` and from there to the shards,
so half a run is never visible and an old version stays readable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pipeline.schema import SCHEMA_VERSION, RejectReason
from pipeline.storage import locations
from pipeline.storage.corpus import Unit
from pipeline.storage.locations import redact_url

Kind = Literal["text-embeddings", "image-embeddings", "substitutes"]

JsonText = str | bytes

POINTER = "current.json"
VERSIONS = "versions"
UNIT_ROWS = "unit_rows"
"""In a manifest's aligner: false where its method gives rows that are not of unit norm."""
_VERSION = re.compile(r"^(\d{6,})-[0-9a-f]{8}$")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one unit became: its shard, its quarantine shard if any row was rejected, the cost.

    `unit` and `fingerprint` name the shard; paths are relative to the dataset folder; `bytes` and
    `sha256` are of the file; `seconds` is by stage; `truncated` counts captions that the encoder
    cut at its context length; `source` is the slice's path (redacted), start and stop row.
    """

    unit: str
    fingerprint: str
    path: str
    rows: int
    bytes: int
    sha256: str
    quarantined: dict[str, int] = field(default_factory=dict)
    quarantine_path: str | None = None
    quarantine_rows: int = 0
    quarantine_bytes: int = 0
    quarantine_sha256: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: int = 0
    source: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the receipt as one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: JsonText) -> Receipt:
        """Return the receipt that `to_json` wrote.

        Raises:
            ValueError: if it is not one.
        """
        try:
            return cls.from_dict(json.loads(text))
        except RecursionError as error:
            raise ValueError("not a receipt: nested too deeply") from error

    @classmethod
    def from_dict(cls, value: object) -> Receipt:
        """Return the receipt in a parsed JSON object; raises ValueError if it is not one."""
        kinds: dict[str, tuple[type, ...]] = {
            "unit": (str,),
            "fingerprint": (str,),
            "path": (str,),
            "rows": (int,),
            "bytes": (int,),
            "sha256": (str,),
            "quarantined": (dict,),
            "quarantine_path": (str, type(None)),
            "quarantine_rows": (int,),
            "quarantine_bytes": (int,),
            "quarantine_sha256": (str, type(None)),
            "seconds": (dict,),
            "truncated": (int,),
            "source": (dict,),
        }
        checked = _checked(value, kinds, "receipt")
        _check_counts(checked["quarantined"], "receipt")
        return cls(**checked)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a dataset; totals are over all receipts and, for rejects, duplicate units.

    `source` says which corpus it was made from: path, columns and the digest of the plan.
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

    @property
    def unit_rows(self) -> bool:
        """Whether embeddings are of unit norm: all are, but for methods that say otherwise."""
        return self.aligner is None or self.aligner.get(UNIT_ROWS) is not False

    def to_json(self) -> str:
        """Return the manifest as indented JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: JsonText) -> Manifest:
        """Return the manifest that `to_json` wrote; raises ValueError if it is not one."""
        kinds: dict[str, tuple[type, ...]] = {
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
        try:
            values = _checked(json.loads(text), kinds, "manifest")
        except RecursionError as error:
            raise ValueError("not a manifest: nested too deeply") from error
        _check_counts(values["quarantined"], "manifest")
        for one in (*values["duplicate_units"], *values["skipped_files"]):
            if not isinstance(one, dict):
                raise ValueError("not a manifest: a unit or file listed in it is no object")
        values["receipts"] = tuple(Receipt.from_dict(one) for one in values["receipts"])
        values["duplicate_units"] = tuple(values["duplicate_units"])
        values["skipped_files"] = tuple(values["skipped_files"])
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
) -> Manifest:
    """Publish a new version of the dataset in `root` and return its manifest.

    Where nothing differs from the current version (shards, source, encoder, aligner, duplicates,
    skipped files), the current one stays and is returned. URLs lose their credentials on the way.
    One writer at a time, the caller sees to it: the version's number is the highest there plus one.

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
    current = open_manifest(root) if locations.exists(locations.join(root, POINTER)) else None
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
    )
    digest = _content_digest(draft)
    if current is not None and _content_digest(current) == digest:
        return current
    manifest = dataclasses.replace(draft, version=f"{_next_number(root):06d}-{digest[:8]}")
    data = manifest.to_json().encode()
    locations.write_bytes(locations.join(root, VERSIONS, f"{manifest.version}.json"), data)
    locations.write_bytes(locations.join(root, "README.md"), _card(manifest).encode())
    pointer = {"version": manifest.version, "sha256": hashlib.sha256(data).hexdigest()}
    locations.write_bytes(locations.join(root, POINTER), json.dumps(pointer).encode())
    return manifest


def read_pointer(root: str) -> Pointer:
    """Return what `current.json` points at.

    Raises:
        ValueError: if there is none or it is damaged.
    """
    where = locations.join(root, POINTER)
    try:
        value = json.loads(locations.read_bytes(where))
        checked = _checked(value, {"version": (str,), "sha256": (str,)}, "pointer")
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no dataset in {redact_url(root)}: {POINTER} is missing (no run has finished)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{redact_url(where)} is damaged: {error}") from error
    return Pointer(**checked)


def read_version(root: str, version: str) -> tuple[Manifest, str]:
    """Return a version's manifest and the sha256 of its file; nothing else is checked but paths.

    Raises:
        ValueError: if there is none, it is damaged, or it names paths outside `root`.
    """
    if not _VERSION.match(version):
        raise ValueError(f"{version!r} is not the name of a version (like 000001-0123abcd)")
    where = locations.join(root, VERSIONS, f"{version}.json")
    try:
        data = locations.read_bytes(where)
        manifest = Manifest.from_json(data)
    except FileNotFoundError as error:
        raise ValueError(f"{redact_url(root)} has no version {version}") from error
    except ValueError as error:
        raise ValueError(f"{redact_url(where)} is damaged: {error}") from error
    for receipt in manifest.receipts:
        locations.join_inside(root, receipt.path)
        if receipt.quarantine_path is not None:
            locations.join_inside(root, receipt.quarantine_path)
    return manifest, hashlib.sha256(data).hexdigest()


def open_manifest(root: str, version: str | None = None) -> Manifest:
    """Return the manifest of the current version, or of the one named.

    Raises:
        ValueError: if there is none, it is damaged, or it names paths outside `root`.
    """
    if version is not None:
        manifest, _ = read_version(root, version)
    else:
        pointer = read_pointer(root)
        manifest, sha256 = read_version(root, pointer.version)
        if sha256 != pointer.sha256:
            raise ValueError(
                f"{VERSIONS}/{pointer.version}.json in {redact_url(root)} was changed after it was "
                "written; `anisoalign verify` says more"
            )
    if manifest.schema_version > SCHEMA_VERSION:
        raise ValueError(
            f"{redact_url(root)} has schema version {manifest.schema_version}, newer than "
            f"{SCHEMA_VERSION}; update anisoalign"
        )
    return manifest


def versions(root: str) -> list[str]:
    """Return the names of all versions in `root`, oldest first."""
    names = [entry.name for entry in locations.list_files(locations.join(root, VERSIONS))]
    found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return sorted(
        (name for name in found if _VERSION.match(name)),
        key=lambda name: int(name.split("-")[0]),
    )


def source_of(unit: Unit) -> dict[str, Any]:
    """Return where a unit came from, fit for a manifest: path without credentials, rows."""
    return {"path": redact_url(unit.path), "start": unit.start, "stop": unit.stop}


def redacted(value: Any) -> Any:
    """Return a JSON value with the credentials of every URL in it masked."""
    if isinstance(value, str):
        return redact_url(value)
    if isinstance(value, Mapping):
        return {key: redacted(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(redacted(one) for one in value)
    if isinstance(value, list):
        return [redacted(one) for one in value]
    return value


def _next_number(root: str) -> int:
    names = versions(root)
    return int(names[-1].split("-")[0]) + 1 if names else 1


def _content_digest(manifest: Manifest) -> str:
    """Return the digest of what makes a version differ from another: not times, not config."""
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
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _card(manifest: Manifest) -> str:
    made = manifest.encoder.get("model", "unknown")
    # Named one by one: data/ may hold shards of other versions too.
    files = "".join(f"  - {receipt.path}\n" for receipt in manifest.receipts)
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
        f"# {manifest.kind}\n\n"
        f"Version {manifest.version}, {manifest.rows} rows in {manifest.units} shards, "
        f"{manifest.dimension}-dimensional {manifest.dtype} embeddings "
        f"{'of unit norm' if manifest.unit_rows else 'not normalised'} "
        f"(encoder: {made}), written by anisoalign on {manifest.created}.\n\n"
        "`current.json` names the current version; `versions/` lists the shards of each; "
        "`data/` may hold shards of other versions too. "
        "Rows that could not be used are in `quarantine/` with the reason.\n"
    )


def _check_counts(counts: Mapping[str, object], what: str) -> None:
    if not all(type(count) is int for count in counts.values()):
        raise ValueError(f"not a {what}: quarantined has a count that is no integer")


def _checked(value: object, kinds: dict[str, tuple[type, ...]], what: str) -> dict[str, Any]:
    """Return `value` as a dict after checking that it has exactly these keys and types."""
    if not isinstance(value, dict):
        raise ValueError(f"not a {what}: not a JSON object")
    missing, unknown = sorted(kinds.keys() - value.keys()), sorted(value.keys() - kinds.keys())
    if missing or unknown:
        raise ValueError(
            f"not a {what}: missing {locations.listed(missing)}, "
            f"unknown {locations.listed(unknown)}"
        )
    for key, allowed in kinds.items():
        one = value[key]
        if not isinstance(one, allowed) or (isinstance(one, bool) and bool not in allowed):
            raise ValueError(f"not a {what}: {key} has the wrong type")
    return cast(dict[str, Any], value)
