"""The arrays of a .npz: those stored as they are are read by range, deflated ones as a whole."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pipeline.storage import locations
from pipeline.storage.kept import kept
from pipeline.storage.locations import StoreError, redact_url
from pipeline.storage.stored_arrays import StoredArray, read_npy_header

MOST_RATIO = 100
"""A deflated array that claims to be more times its stored size is refused as a bomb."""
MOST_DECODED_BYTES = 4 * 2**30
"""A deflated array of more bytes is refused: it would have to be in memory as a whole."""
_MOST_MEMBERS = 10_000
_LOCAL_HEADER_BYTES = 30
_LOCAL_HEADER = b"PK\x03\x04"
_ENCRYPTED = 0x1
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def npz_arrays(url: str, identity: str | None = None) -> dict[str, StoredArray]:
    """Return the arrays of a .npz by name; `identity` is what the file is known by.

    Raises:
        ValueError: if it is no .npz, or a member is no array or encrypted.
    """
    found: dict[str, StoredArray] = {}
    with locations.open_for_reading(url) as file, _opened(file, url) as archive:
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise ValueError(
                f"{redact_url(url)} has {len(members)} members, more than {_MOST_MEMBERS}"
            )
        for member in members:
            name = member.filename.removesuffix(".npy")
            what = f"{name!a} of {redact_url(url)}"
            if name in found:
                raise ValueError(f"{redact_url(url)} has the array {name!a} twice")
            _require_readable(member, what)
            with archive.open(member) as content:
                array = read_npy_header(content, member.file_size, url, what)
            if member.compress_type == zipfile.ZIP_STORED:
                begin = _begin(file, member, archive.start_dir, what)
                found[name] = dataclasses.replace(array, offset=begin + array.offset)
            else:
                decoded = partial(_decoded, url, member.filename, identity)
                refusal = array.refusal or _implausible(member, what)
                found[name] = dataclasses.replace(array, decoded=decoded, refusal=refusal)
    return found


@contextmanager
def _opened(file: Any, url: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except StoreError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
        line = (str(error).splitlines() or ["damaged"])[0]
        raise ValueError(f"{redact_url(url)} is not a readable .npz: {line}") from error


def _require_readable(member: zipfile.ZipInfo, what: str) -> None:
    """Raise ValueError for a member of a kind that is not read."""
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{what} is encrypted; save it without a password")
    if member.compress_type not in _METHODS:
        raise ValueError(
            f"{what} is compressed by method {member.compress_type}; save it with numpy.savez"
        )
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise ValueError(f"{what} is stored as it is and yet of another size; it is damaged")


def _implausible(member: zipfile.ZipInfo, what: str) -> str:
    """Return why a deflated member is not inflated, "" where it is."""
    if member.file_size > MOST_RATIO * max(member.compress_size, 1):
        return (
            f"{what} claims {member.file_size} bytes in {member.compress_size}, more than "
            f"{MOST_RATIO} times as many; save it with numpy.savez if that is so"
        )
    if member.file_size > MOST_DECODED_BYTES:
        return (
            f"{what} has {member.file_size} bytes when inflated, more than are held in memory "
            f"({MOST_DECODED_BYTES}); save it with numpy.savez, which is read by rows"
        )
    return ""


def _begin(file: Any, member: zipfile.ZipInfo, end: int, what: str) -> int:
    """Return where a stored member's bytes begin: behind its own header, not the directory's."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_LOCAL_HEADER):
        raise ValueError(f"{what} is not where its archive says; the file is damaged")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    begin = int(member.header_offset) + _LOCAL_HEADER_BYTES + name + extra
    if begin + member.file_size > end:
        raise ValueError(f"{what} reaches beyond its archive; the file is damaged")
    return begin


def _decoded(url: str, member: str, identity: str | None) -> bytes:
    """Return a member inflated; kept for the file's next unit in this process."""

    def inflated() -> bytes:
        with locations.open_for_reading(url) as file, _opened(file, url) as archive:
            return archive.read(member)

    # The same file as when its headers were read, `identity` says; the limits held for them.
    return kept(url, identity, member, inflated, len)
