"""Files at places: any fsspec URL (local path, file://, s3://, memory://) behind one set of calls.

What a store fails at for a moment (throttling, a lost connection, a cut answer) is tried again
here, and nowhere else. Deleting a file twice and writing the same bytes twice are harmless.
"""

from __future__ import annotations

import io
import os
import stat
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage import local_files, object_stores
from pipeline.storage.errors import StoreError, UnwritableError, reading, writing
from pipeline.storage.object_stores import RangeFile, entry_identity, is_s3
from pipeline.storage.open_files import CheckedFile
from pipeline.storage.places import (
    absolute,
    is_hidden,
    is_local,
    join,
    join_inside,
    listed,
    rebuilt,
    redact_url,
    resolve,
)
from pipeline.storage.retrying import TruncatedError, error_code, retried

__all__ = [
    "FileEntry",
    "StoreError",
    "UnwritableError",
    "abort_uploads",
    "absolute",
    "check_writable",
    "create_exclusively",
    "exists",
    "file_entry",
    "glob_files",
    "is_folder",
    "is_local",
    "join",
    "join_inside",
    "list_files",
    "listed",
    "open_for_reading",
    "read_bytes",
    "redact_url",
    "remove",
    "remove_files",
    "remove_leftovers",
    "resolve",
    "write_bytes",
]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file: full URL, name relative to the listed folder, bytes, and what changes with it.

    `identity` is the entity tag of an object, or inode, times and size of a local file; None where
    the store tells nothing. Equal identities of one URL mean the same content. `shared_identity`
    is what every machine that sees the file finds: without inode and time of change, which a
    network filesystem may show otherwise to each.
    """

    url: str
    name: str
    size: int
    identity: str | None = None
    shared_identity: str | None = None


def exists(url: str) -> bool:
    """Return whether a file or folder is there.

    Raises:
        ValueError: if the store does not answer.
    """
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem):
        return _local_status(url, path) is not None
    with reading(url):
        return bool(retried(partial(filesystem.exists, path)))


def is_folder(url: str) -> bool:
    """Return whether the URL is a folder (on an object store: a prefix with objects).

    Raises:
        ValueError: if the store does not answer.
    """
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem):
        status = _local_status(url, path)
        return status is not None and stat.S_ISDIR(status.st_mode)
    with reading(url):
        return bool(retried(partial(filesystem.isdir, path)))


def open_for_reading(url: str) -> Any:
    """Return an open binary file, seekable; its later reads are tried again too.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be opened.
    """
    filesystem, path = resolve(url)
    with reading(url):
        if not getattr(filesystem, "async_impl", False):
            file = CheckedFile(retried(partial(filesystem.open, path, "rb")), url)
            return io.BufferedReader(file)
        entry = retried(partial(filesystem.info, path))
        if entry.get("type") == "directory":
            raise FileNotFoundError(path)
        if entry.get("size") is None or not entry.get("partial", True):
            return retried(partial(filesystem.open, path, "rb"))  # a server without ranges
    return RangeFile(lambda start, stop: _read_range(url, start, stop, whole=True), entry["size"])


def read_bytes(url: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes [start, stop) of a file (fewer where it ends before), all by default.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read.
    """
    if stop is not None:
        return _read_range(url, start, stop) if stop > start else b""
    filesystem, path = resolve(url)
    # One request, so that all of it is of one version; its client counts the bytes.
    options = {"max_concurrency": 1} if is_s3(filesystem) else {}
    with reading(url):
        return bytes(retried(partial(filesystem.cat_file, path, start=start or None, **options)))


def _read_range(url: str, start: int, stop: int, *, whole: bool = False) -> bytes:
    filesystem, path = resolve(url)

    def read() -> bytes:
        data = bytes(filesystem.cat_file(path, start=start, end=stop))
        if len(data) > stop - start:
            raise ValueError("its server sends whole files only")
        if len(data) < stop - start:
            size = int(filesystem.info(path)["size"])
            if len(data) < max(0, min(stop, size) - start):
                raise TruncatedError(f"{len(data)} of {stop - start} bytes came")
            if whole:
                raise ValueError("it was changed while being read")
        return data

    with reading(url):
        return retried(read)


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file so that a reader sees all of it or nothing.

    Locally to a temporary name in the same folder, synced and renamed; elsewhere in one put.

    Raises:
        UnwritableError: if the place is full, read-only or forbidden, or its bucket is missing.
        ValueError: if it cannot be written for another reason.
    """
    filesystem, path = resolve(url)
    with writing(url):
        if isinstance(filesystem, LocalFileSystem):
            retried(partial(local_files.replace_file, Path(path), data))
        else:
            retried(partial(filesystem.pipe_file, path, data))


def create_exclusively(url: str, data: bytes) -> bool:
    """Write a whole file if none is there; return whether it is this caller's.

    Of several callers at once exactly one gets True. `data` must hold something that no other
    caller writes: when a store says that the file is there already, it may be ours, from a first
    try whose answer was lost, and is read to find out.

    Raises:
        UnwritableError: as `write_bytes`.
        ValueError: if the store cannot do so, or cannot be written.
    """
    filesystem, path = resolve(url)
    with writing(url):
        if isinstance(filesystem, LocalFileSystem):
            return retried(partial(local_files.create_file, Path(path), data))
        if retried(partial(_create, filesystem, path, data)):
            return True
    try:
        return read_bytes(url) == data
    except FileNotFoundError:
        return False


def _create(filesystem: Any, path: str, data: bytes) -> bool:
    try:
        filesystem.pipe_file(path, data, mode="create")
    except Exception as error:
        if isinstance(error, FileExistsError) or error_code(error) == "PreconditionFailed":
            return False
        raise
    return True


def remove(url: str) -> None:
    """Delete a file; no error where there is none.

    Raises:
        UnwritableError: if the place may not be written.
        ValueError: if it cannot be deleted for another reason.
    """
    remove_files([url])


def remove_files(urls: Iterable[str]) -> None:
    """Delete files, on S3 a thousand in a request; no error where there is none.

    Raises:
        UnwritableError: if a place may not be written.
        ValueError: if one cannot be deleted for another reason.
    """
    objects: dict[int, tuple[Any, str, list[str]]] = {}
    for url in urls:
        filesystem, path = resolve(url)
        if is_s3(filesystem):
            objects.setdefault(id(filesystem), (filesystem, url, []))[2].append(path)
            continue
        with writing(url, "delete"):
            retried(partial(_remove, filesystem, path))
    for filesystem, url, paths in objects.values():
        with writing(url, "delete"):
            object_stores.delete_objects(filesystem, paths)


def _remove(filesystem: Any, path: str) -> None:
    try:
        filesystem.rm_file(path)
    except FileNotFoundError:
        return


def abort_uploads(url: str, older_than_s: float) -> int:
    """Abort what killed processes left of multipart puts below a folder of S3; return how many.

    They are in no listing and cost their space. 0 on anything but S3.

    Raises:
        UnwritableError: if it is not allowed.
        ValueError: if the store does not answer.
    """
    filesystem, path = resolve(url)
    if not is_s3(filesystem):
        return 0
    with writing(url, "abort uploads below"):
        return object_stores.abort_uploads(filesystem, path, older_than_s)


def remove_leftovers(root: str, older_than_s: float) -> int:
    """Delete the temporary files that killed processes left below a local folder; return how many.

    Raises:
        UnwritableError: if it is not allowed.
    """
    filesystem, path = resolve(root)
    if not isinstance(filesystem, LocalFileSystem):
        return 0
    with writing(root, "delete temporary files below"):
        return local_files.remove_temporaries(path, older_than_s)


def check_writable(url: str) -> None:
    """Make sure that files can be written in a folder, by writing and deleting one.

    Raises:
        UnwritableError: if the place is full, read-only or forbidden, or its bucket is missing.
        ValueError: if they cannot for another reason.
    """
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem) and Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"cannot write to {redact_url(url)}: it is a file; give a folder")
    probe = join(url, f".write-check-{uuid.uuid4().hex}")
    write_bytes(probe, b"")
    remove(probe)


def list_files(url: str) -> list[FileEntry]:
    """Return every file below a folder, sorted by name, hidden ones left out; [] if none.

    Raises:
        ValueError: if it cannot be listed, or a link to a folder is in it.
    """
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem):
        with reading(url, "list"):
            found = retried(lambda: list(local_files.walk_files(path)))
        entries = [
            FileEntry(
                url=rebuilt(url, path, name),
                name=name[len(path.rstrip("/")) + 1 :],
                size=status.st_size,
                identity=local_files.status_identity(status),
                shared_identity=local_files.shared_identity(status),
            )
            for name, status in found
        ]
        return sorted(entries, key=lambda entry: entry.name)
    prefix = path.rstrip("/") + "/"
    objects = _listed(url, partial(filesystem.find, path, detail=True))
    entries = [
        _object_entry(rebuilt(url, path, name), name.removeprefix(prefix), entry)
        for name, entry in objects.items()
        if name.startswith(prefix) and not name.endswith("/")
    ]
    return sorted((one for one in entries if not is_hidden(one.name)), key=lambda e: e.name)


def glob_files(url: str) -> list[FileEntry]:
    """Return the files that a glob names, sorted by path, hidden ones left out.

    Raises:
        ValueError: if the store does not answer.
    """
    filesystem, pattern = resolve(url)
    found = _listed(url, partial(filesystem.glob, pattern, detail=True))
    local = isinstance(filesystem, LocalFileSystem)
    entries = []
    for name, entry in sorted(found.items()):
        last = name.rsplit("/", 1)[-1]
        linked = local and bool(entry.get("islink")) and Path(name).is_file()
        if is_hidden(last) or not (entry.get("type") == "file" or linked):
            continue
        where = rebuilt(url, pattern, name)
        entries.append(_local_entry(where, name) if local else _object_entry(where, last, entry))
    return entries


def file_entry(url: str) -> FileEntry:
    """Return the size and identity of one file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the store does not answer.
    """
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem):
        with reading(url):
            return retried(partial(_local_entry, url, path))
    with reading(url):
        entry = retried(partial(filesystem.info, path))
        if entry.get("type") == "directory":
            raise FileNotFoundError(path)
    return _object_entry(url, path.rsplit("/", 1)[-1], entry)


def _listed(
    url: str, operation: Callable[[], dict[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    try:
        with reading(url, "list"):
            return retried(operation)
    except FileNotFoundError:
        return {}


def _local_status(url: str, path: str) -> os.stat_result | None:
    """Return the status of a local file or folder, None only if there is none."""
    try:
        with reading(url):
            return retried(partial(os.stat, path))
    except FileNotFoundError:
        return None


def _local_entry(url: str, path: str) -> FileEntry:
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(path)
    return FileEntry(
        url=url,
        name=Path(path).name,
        size=status.st_size,
        identity=local_files.status_identity(status),
        shared_identity=local_files.shared_identity(status),
    )


def _object_entry(url: str, name: str, entry: dict[str, Any]) -> FileEntry:
    size = int(entry.get("size") or 0)
    identity = entry_identity(entry)
    return FileEntry(url=url, name=name, size=size, identity=identity, shared_identity=identity)
