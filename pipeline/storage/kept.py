"""What was decoded of one file, kept in this process: its units mostly come one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

MOST_KEPT_BYTES = 2**30
"""What is larger is decoded again for each unit, rather than held by every worker for good."""

Decoded = TypeVar("Decoded")

_file: tuple[str, str] | None = None
_parts: dict[str, Any] = {}
_bytes = 0


def kept(
    url: str,
    identity: str | None,
    part: str,
    decode: Callable[[], Decoded],
    size: Callable[[Decoded], int],
) -> Decoded:
    """Return a part of a file as `decode` gives it, from memory where it is of the last file.

    `identity` is what the file is known by; without one nothing is kept. `size` is in bytes.
    """
    global _file, _parts, _bytes
    if identity is None:
        return decode()
    if _file != (url, identity):
        _file, _parts, _bytes = (url, identity), {}, 0
    parts = _parts  # another thread may turn to another file meanwhile
    if part not in parts:
        value = decode()
        if _bytes + size(value) > MOST_KEPT_BYTES:
            return value
        if parts is _parts:
            _bytes += size(value)
        parts[part] = value
    found: Decoded = parts[part]
    return found
