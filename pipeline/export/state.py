"""What a target says of itself: which export it is, and which parts of it are whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage import locations
from pipeline.storage.lease import FOLDER as LEASE
from pipeline.storage.locations import redact_url
from pipeline.storage.receipts import Kinds, checked, parsed

EXPORT_SCHEMA_VERSION = 1
STATE = "export.json"
PARTS = "parts"
INDEX = f"{PARTS}/index.json"
CHECKSUMS = "checksums.sha256"
_READERS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTITY: Kinds = {
    "schema_version": (int,),
    "dataset": (str,),
    "version": (str,),
    "content": (str,),
    "format": (str,),
    "parts": (int,),
    "options": (dict,),
    "fingerprint": (str,),
}
_PART: Kinds = {"rows": (int,), "files": (dict,), "entries": (int, type(None)), "notes": (dict,)}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which export a target holds; `dataset` tells where it came from and is not compared.

    `content` is the digest of the version's content, `options` all that the files depend on
    beside it.
    """

    dataset: str
    version: str
    content: str
    format: str
    parts: int
    options: dict[str, Any]
    schema_version: int = EXPORT_SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """The digest of the options."""
        said = json.dumps(self.options, sort_keys=True).encode()
        return hashlib.sha256(said).hexdigest()

    def to_json(self) -> bytes:
        """Return the content of export.json."""
        said = {**dataclasses.asdict(self), "fingerprint": self.fingerprint}
        return (json.dumps(said, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Identity:
        """Return the identity that `to_json` wrote; raises ValueError if it is not one."""
        said = checked(parsed(data, "export"), _IDENTITY, "export")
        fingerprint = said.pop("fingerprint")
        found = cls(**said)
        if found.fingerprint != fingerprint:
            raise ValueError("not an export: its options were changed")
        return found

    def check_same(self, other: Identity, target: str) -> None:
        """Raise ValueError, saying what differs, unless `other` is the same export as this."""
        if self.format == other.format and self.version != other.version:
            raise ValueError(
                f"{redact_url(target)} holds an export of version {self.version}, not of "
                f"{other.version}; go on with --version {self.version}, or give an empty folder"
            )
        for what, there, wanted in (
            ("schema version", self.schema_version, other.schema_version),
            ("format", self.format, other.format),
            ("version", self.version, other.version),
            ("content", self.content, other.content),
            ("number of parts", self.parts, other.parts),
        ):
            if there != wanted:
                raise ValueError(
                    f"{redact_url(target)} holds an export of another {what} ({there}, not "
                    f"{wanted}); give an empty folder"
                )
        names = sorted(self.options.keys() | other.options.keys())
        differing = [one for one in names if self.options.get(one) != other.options.get(one)]
        if differing:
            raise ValueError(
                f"{redact_url(target)} holds an export with other options "
                f"({locations.listed(differing)}); give those, or an empty folder"
            )


@dataclass(frozen=True, kw_only=True)
class PartReceipt:
    """What was written of a part: bytes and sha256 of its files by path, rows, index notes.

    `entries` is the size of its rows in the list that all parts share, None without one; that
    file goes when the list is written.
    """

    rows: int
    files: dict[str, tuple[int, str]]
    entries: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the receipt as a line of JSON."""
        return (json.dumps(dataclasses.asdict(self), sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> PartReceipt:
        """Return the receipt that `to_json` wrote; raises ValueError if it is not one."""
        said = checked(parsed(data, "receipt of a part"), _PART, "receipt of a part")
        files = {}
        for path, facts in said["files"].items():
            if not (
                isinstance(facts, list)
                and len(facts) == 2
                and type(facts[0]) is int
                and isinstance(facts[1], str)
                and _SHA256.fullmatch(facts[1])
            ):
                raise ValueError("not a receipt of a part: a file without bytes and sha256")
            files[path] = (facts[0], facts[1])
        return cls(**{**said, "files": files})

    @property
    def bytes(self) -> int:
        """The bytes of its files."""
        return sum(size for size, _ in self.files.values())

    def is_whole(self, sizes: Mapping[str, int]) -> bool:
        """Return whether its files have their sizes."""
        return all(sizes.get(path) == size for path, (size, _) in self.files.items())


@dataclass(frozen=True)
class Target:
    """A folder that exports go to."""

    url: str

    def file(self, path: str) -> str:
        """Return the URL of a file of the target; refuses links that lead out of it."""
        return locations.join_inside(self.url, path)

    def sizes(self) -> dict[str, int]:
        """Return the sizes of its files by path, leases left out."""
        return {
            entry.name: entry.size
            for entry in locations.list_files(self.url)
            if not entry.name.startswith(f"{LEASE}/")
        }

    def identity(self, sizes: Mapping[str, int]) -> Identity | None:
        """Return which export is there, None where there is nothing at all.

        Raises:
            ValueError: if something else is there.
        """
        if not sizes:
            return None
        shown = redact_url(self.url)
        if STATE not in sizes:
            raise ValueError(
                f"{shown} holds something else ({min(sizes)}) and no export; give an empty folder"
            )
        try:
            return Identity.from_json(locations.read_bytes(self.file(STATE)))
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, locations.StoreError):
                raise
            raise ValueError(
                f"{redact_url(self.file(STATE))} is damaged: {error}; give an empty folder"
            ) from error

    def receipt(self, path: str) -> PartReceipt | None:
        """Return a receipt that is there and as it was written."""
        try:
            data = locations.read_bytes(self.file(path))
            found = PartReceipt.from_json(data)
        except locations.StoreError:
            raise
        except (ValueError, FileNotFoundError):
            return None
        return found if found.to_json() == data else None

    def whole_parts(self, parts: int, sizes: Mapping[str, int]) -> dict[int, PartReceipt]:
        """Return the receipts of the parts whose files are all there, by number."""
        numbers = [number for number in range(parts) if receipt_path(number) in sizes]
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda number: self.receipt(receipt_path(number)), numbers)
            return {
                number: receipt
                for number, receipt in zip(numbers, found, strict=True)
                if receipt is not None and receipt.is_whole(sizes)
            }


def receipt_path(number: int) -> str:
    """Return where a part's receipt is in the target."""
    return f"{PARTS}/{number:05d}.json"


def entries_path(number: int) -> str:
    """Return where a part's rows of the shared list are, until the list is written."""
    return f"{PARTS}/{number:05d}.entries"


def checksums(identity: Identity, parts: Iterable[PartReceipt], index: PartReceipt) -> bytes:
    """Return what `sha256sum -c` reads: every file of the target but this one, by path."""
    found = {STATE: _sha256(identity.to_json()), INDEX: _sha256(index.to_json())}
    found.update((path, sha256) for path, (_, sha256) in index.files.items())
    for number, receipt in enumerate(parts):
        found[receipt_path(number)] = _sha256(receipt.to_json())
        found.update((path, sha256) for path, (_, sha256) in receipt.files.items())
    return "".join(f"{found[path]}  {path}\n" for path in sorted(found)).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
