"""Tars that several rooms' tests read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.storage import locations

KINDS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}

Members = Iterable[tuple[str, bytes] | tarfile.TarInfo]


def tar_of(members: Members, kind: str = "pax", **options: Any) -> bytes:
    """A tar of (name, bytes), or of prepared TarInfos."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=KINDS[kind], **options) as tar:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                tar.addfile(one)
                continue
            name, data = one
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path | str, members: Members, kind: str = "pax", **options: Any) -> str:
    """Write such a tar to any store; returns its URL."""
    locations.write_bytes(str(path), tar_of(members, kind, **options))
    return str(path)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A folder, link or device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
