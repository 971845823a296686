"""What planning learnt of input files, remembered: an unchanged file is not read again."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline.formats import Format
from pipeline.storage import locations
from pipeline.storage.companions import companion_file
from pipeline.storage.corpus import Corpus, schema_text
from pipeline.storage.locations import FileEntry
from pipeline.storage.receipts import parsed
from pipeline.storage.slices import FileFacts, Slice, combined

CUTTING_VERSION = 1
"""To be raised whenever files are cut in another way or other facts are kept of them."""
_RACY_SECONDS = 2.0
"""A file changed again so soon may keep its size and its time: what was read is not kept."""


class FactsCache:
    """The facts of a corpus's files, by the digest of their URLs, in one JSON file at `url`.

    An entry holds as long as its file's identity and all that the cutting depends on are the same.
    A cache that is damaged or was written under other settings is empty. No URL stands in it.
    """

    def __init__(
        self,
        url: str,
        corpus: Corpus,
        found: Format,
        rows_per_shard: int,
        entries: Sequence[FileEntry],
    ) -> None:
        self._url = url
        self._corpus = corpus
        self._found = found
        read = {name: value for name, value in corpus.identity.items() if name != "path"}
        self._settings = combined("file facts", CUTTING_VERSION, found, rows_per_shard, read)
        stored = self._load()
        listed = {_name(entry) for entry in entries}
        self._entries = {name: entry for name, entry in stored.items() if name in listed}
        self._changed = len(self._entries) < len(stored)

    def facts(self, entry: FileEntry, cut: Callable[[FileEntry], FileFacts]) -> FileFacts:
        """Return what is known of a file, else what `cut` finds in it; raises what `cut` raises."""
        started = time.time()
        identity = self._identity(entry)
        name = _name(entry)
        stored = self._entries.get(name)
        if identity is not None and stored is not None and stored.get("identity") == identity:
            try:
                return self._from_json(entry, stored)
            except (KeyError, TypeError, ValueError, pa.ArrowException):
                pass  # of another shape: cut again
        found = cut(entry)
        if identity is not None and self._stood_still(entry, identity, found, started):
            self._entries[name] = {"identity": identity, **_to_json(found)}
            self._changed = True
        return found

    def save(self) -> None:
        """Write the cache if anything in it changed."""
        if not self._changed:
            return
        text = json.dumps(self._entries, sort_keys=True, allow_nan=False)
        data = {"settings": self._settings, "checksum": _checksum(text), "entries": text}
        try:
            locations.write_bytes(self._url, json.dumps(data).encode())
        except ValueError:
            # Planning only reads: it works where nothing can be written, it takes longer there.
            return
        self._changed = False

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            data = parsed(locations.read_bytes(self._url), "cache")
            if not isinstance(data, Mapping) or data.get("settings") != self._settings:
                return {}
            text = data["entries"]
            entries = parsed(text, "cache") if data["checksum"] == _checksum(text) else None
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError):
            return {}
        if not isinstance(entries, dict) or not all(
            isinstance(entry, dict) for entry in entries.values()
        ):
            return {}
        return entries

    def _identity(self, entry: FileEntry) -> str | None:
        """Return what changes when a file or the one beside it does, None if nothing tells."""
        known = [(entry if entry.size >= 0 else locations.file_entry(entry.url)).identity]
        beside = companion_file(self._corpus, self._found, entry.url)
        if beside is not None:
            known += [beside, locations.file_entry(beside).identity]
        elif self._found == "npy":
            known.append("none")
        return None if None in known else combined(*known)

    def _stood_still(
        self, entry: FileEntry, identity: str, found: FileFacts, started: float
    ) -> bool:
        """Return whether a file, read after `started`, surely was as its identity says."""
        now = FileEntry(url=entry.url, name=entry.name, size=-1)  # looked up, not as listed
        if self._identity(now) != identity:
            return False
        urls = [entry.url] if found.ids_path is None else [entry.url, found.ids_path]
        changed = [at for url in urls if (at := _changed_at(url)) is not None]
        return all(at < started - _RACY_SECONDS for at in changed)

    def _from_json(self, entry: FileEntry, stored: Mapping[str, Any]) -> FileFacts:
        passed = stored["passed_through"]
        return FileFacts(
            slices=tuple(
                Slice(start=start, stop=stop, digest=digest, byte_start=first, byte_stop=last)
                for start, stop, digest, first, last in stored["slices"]
            ),
            has_ids=stored["has_ids"],
            dimension=stored["dimension"],
            passed_through=(
                None if passed is None else pa.ipc.read_schema(pa.py_buffer(_decoded(passed)))
            ),
            ids_path=companion_file(self._corpus, self._found, entry.url),
        )


def _to_json(found: FileFacts) -> dict[str, Any]:
    return {
        "slices": [
            [one.start, one.stop, one.digest, one.byte_start, one.byte_stop] for one in found.slices
        ],
        "has_ids": found.has_ids,
        "dimension": found.dimension,
        "passed_through": (
            None if found.passed_through is None else schema_text(found.passed_through)
        ),
    }


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _name(entry: FileEntry) -> str:
    """Return the digest of a URL: it may hold credentials, and without them is not unique."""
    return combined("url", entry.url)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _changed_at(url: str) -> float | None:
    """Return when a local file was last changed; None elsewhere, where identities are digests."""
    filesystem, path = locations.resolve(url)
    if not isinstance(filesystem, LocalFileSystem):
        return None
    status = Path(path).stat()
    return max(status.st_mtime, status.st_ctime)
