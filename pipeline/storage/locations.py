"""Places: any fsspec URL (local path, file://, s3://, memory://) as one kind of name.

A URL here is a plain string. Messages show URLs through `redact_url`, so that no credential that
someone put in a URL reaches a log, an error or a manifest.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One listed file: its full URL, its name relative to the listed folder, its size in bytes."""

    url: str
    name: str
    size: int


def redact_url(text: str) -> str:
    """Return `text` with `user:password@`, query and fragment of every URL in it masked."""

    def mask(match: re.Match[str]) -> str:
        scheme, rest = match.group(0).split("://", 1)
        authority, slash, path = rest.partition("/")
        authority = "***@" + authority.rsplit("@", 1)[1] if "@" in authority else authority
        rest = authority + slash + path
        if scheme.lower() in {"http", "https"} or "=" in rest:
            rest = re.sub(r"[?#].*", "?***", rest)
        return f"{scheme}://{rest}"

    return _URL_IN_TEXT.sub(mask, text)


def resolve(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL and the path inside it (absolute if local).

    Raises:
        ValueError: if the URL is empty, holds NUL, or its protocol is unknown or not installed.
    """
    if not url or "\0" in url:
        raise ValueError(f"{url!r} is not a path or URL")
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"cannot use the location {redact_url(url)}: {_reason(error)}") from error
    return filesystem, str(path)


def absolute(url: str) -> str:
    """Return a URL that means the same in every process: relative local paths made absolute."""
    filesystem, path = resolve(url)
    return path if isinstance(filesystem, LocalFileSystem) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Return `url/part/part`; the parts are the program's own names (else see `join_inside`)."""
    return "/".join([url.rstrip("/"), *parts])


def join_inside(root: str, relative: str) -> str:
    """Return `root/relative` after making sure that it stays in `root`.

    Raises:
        ValueError: if `relative` is empty, absolute, a URL, or has `.`, `..`, NUL or a backslash.
    """
    segments = relative.split("/")
    if (
        any(segment in {"", ".", ".."} for segment in segments)
        or any(sign in relative for sign in ("\0", "\\", "::", "://"))
        or relative.startswith("~")
    ):
        raise ValueError(f"{relative!r} is not a path inside {redact_url(root)}; refused")
    return join(root, relative)


def exists(url: str) -> bool:
    """Return whether a file or folder is there."""
    filesystem, path = resolve(url)
    return bool(filesystem.exists(path))


def is_folder(url: str) -> bool:
    """Return whether the URL is a folder (on an object store: a prefix with objects)."""
    filesystem, path = resolve(url)
    return bool(filesystem.isdir(path))


def open_for_reading(url: str) -> Any:
    """Return an open binary file, seekable.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be opened.
    """
    filesystem, path = resolve(url)
    try:
        return filesystem.open(path, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {redact_url(url)}") from error
    except Exception as error:  # every store raises its own kinds
        raise ValueError(f"cannot read {redact_url(url)}: {_reason(error)}") from error


def read_bytes(url: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes [start, stop) of a file, all of them by default, in one request.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read.
    """
    filesystem, path = resolve(url)
    if stop is not None and stop <= start:
        return b""
    try:
        return bytes(filesystem.cat_file(path, start=start or None, end=stop))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no file {redact_url(url)}") from error
    except Exception as error:  # every store raises its own kinds
        raise ValueError(f"cannot read {redact_url(url)}: {_reason(error)}") from error


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file so that a reader sees all of it or nothing.

    Locally to a temporary name in the same folder, synced and renamed; elsewhere in one put.

    Raises:
        ValueError: if it cannot be written.
    """
    filesystem, path = resolve(url)
    try:
        if isinstance(filesystem, LocalFileSystem):
            _replace_local(Path(path), data)
        else:
            filesystem.pipe_file(path, data)
    except Exception as error:  # every store raises its own kinds
        raise ValueError(
            f"cannot write {redact_url(url)}: {_reason(error)}; choose a place that you may write"
        ) from error


def remove(url: str) -> None:
    """Delete a file; no error where there is none."""
    filesystem, path = resolve(url)
    if filesystem.exists(path):
        filesystem.rm_file(path)


def check_writable(url: str) -> None:
    """Make sure that files can be written in a folder, by writing and deleting one.

    Raises:
        ValueError: if they cannot.
    """
    filesystem, path = resolve(url)
    if isinstance(filesystem, LocalFileSystem) and Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"cannot write to {redact_url(url)}: it is a file; give a folder")
    probe = join(url, f".write-check-{uuid.uuid4().hex}")
    write_bytes(probe, b"")
    remove(probe)


def list_files(url: str) -> list[FileEntry]:
    """Return every file below a folder, sorted by name, hidden ones left out; [] if none."""
    filesystem, path = resolve(url)
    filesystem.invalidate_cache()
    try:
        found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    except FileNotFoundError:
        return []
    except Exception as error:  # every store raises its own kinds
        raise ValueError(f"cannot list {redact_url(url)}: {_reason(error)}") from error
    prefix = path.rstrip("/") + "/"
    entries = [
        FileEntry(
            url=_rebuilt(url, path, name),
            name=name.removeprefix(prefix),
            size=int(entry.get("size") or 0),
        )
        for name, entry in found.items()
        if name.startswith(prefix)
    ]
    return sorted((entry for entry in entries if not _hidden(entry.name)), key=lambda e: e.name)


def glob_files(url: str) -> list[FileEntry]:
    """Return the files that a glob names, sorted by path, hidden ones left out."""
    filesystem, pattern = resolve(url)
    filesystem.invalidate_cache()
    try:
        found: dict[str, dict[str, Any]] = filesystem.glob(pattern, detail=True)
    except Exception as error:  # every store raises its own kinds
        raise ValueError(f"cannot list {redact_url(url)}: {_reason(error)}") from error
    return [
        FileEntry(
            url=_rebuilt(url, pattern, name),
            name=name.rsplit("/", 1)[-1],
            size=int(entry.get("size") or 0),
        )
        for name, entry in sorted(found.items())
        if entry.get("type") == "file" and not _hidden(name.rsplit("/", 1)[-1])
    ]


def _rebuilt(url: str, path: str, found: str) -> str:
    """Return the URL of `found`, a sibling of `path` in the filesystem that `url` opened.

    Built from `url` itself, since a filesystem forgets host and user when it strips its protocol.
    """
    url, path = url.rstrip("/"), path.rstrip("/")
    if not _SCHEME.match(url):
        return found
    if url.endswith(path):
        return url[: len(url) - len(path)] + found
    return str(resolve(url)[0].unstrip_protocol(found))


def _hidden(name: str) -> bool:
    return any(segment.startswith(".") for segment in name.split("/"))


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reason(error: BaseException) -> str:
    """Return an exception as one redacted line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact_url(lines[0])


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Return names as `a, b, c` for a message, cut after `limit`."""
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
