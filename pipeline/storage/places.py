"""Names of places: any fsspec URL (local path, file://, s3://, memory://) as a plain string.

Messages show URLs through `redact_url` and errors through `reason`, so that no credential and no
endpoint that someone configured reaches a log, an error or a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.dircache import DirCache
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.local_files import first_link

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_ENDPOINT_IN_TEXT = re.compile(r"[\"']?https?://\S+|(?<=host )\S+:\d+( ssl:\S+)?")


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
        raise ValueError(f"cannot use the location {redact_url(url)}: {reason(error)}") from error
    # Other processes write too: a listing that a filesystem remembers may be an old one.
    remembered = getattr(filesystem, "dircache", None)
    if isinstance(remembered, DirCache):
        remembered.use_listings_cache = False
    elif remembered is not None:
        filesystem.invalidate_cache()  # the Hugging Face hub's, a plain dict
    return filesystem, str(path)


def is_local(url: str) -> bool:
    """Return whether a URL leads to this machine's files (or such as look like them, by NFS)."""
    return isinstance(resolve(url)[0], LocalFileSystem)


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
        ValueError: if `relative` is empty, absolute, a URL, has `.`, `..`, NUL or a backslash, or
            passes a symbolic link below `root` (which may be one itself).
    """
    segments = relative.split("/")
    if (
        any(segment in {"", ".", ".."} for segment in segments)
        or any(sign in relative for sign in ("\0", "\\", "::", "://"))
        or relative.startswith("~")
    ):
        raise ValueError(f"{relative!r} is not a path inside {redact_url(root)}; refused")
    filesystem, path = resolve(root)
    if isinstance(filesystem, LocalFileSystem) and (link := first_link(Path(path), relative)):
        raise ValueError(
            f"{link} is a symbolic link and may lead out of {redact_url(root)}; refused: put the "
            "file or folder itself there"
        )
    return join(root, relative)


def rebuilt(url: str, path: str, found: str) -> str:
    """Return the URL of `found`, a sibling of `path` in the filesystem that `url` opened.

    Built from `url` itself, since a filesystem forgets host and user when it strips its protocol.
    """
    url, path = url.rstrip("/"), path.rstrip("/")
    if not _SCHEME.match(url):
        return found
    if url.endswith(path):
        return url[: len(url) - len(path)] + found
    return str(resolve(url)[0].unstrip_protocol(found))


def is_hidden(name: str) -> bool:
    return any(segment.startswith(".") for segment in name.split("/"))


def reason(error: BaseException) -> str:
    """Return an exception as one line, without endpoints and credentials."""
    if isinstance(error, OSError) and error.strerror:
        text = str(error.strerror)
    else:
        text = str(error).strip() or type(error).__name__
    return redact_url(_ENDPOINT_IN_TEXT.sub("(the store)", text.splitlines()[0]))


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Return names as `a, b, c` for a message, cut after `limit`."""
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
