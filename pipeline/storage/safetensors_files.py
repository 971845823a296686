"""The tensors of a .safetensors file, by its header alone."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from pipeline.storage import locations
from pipeline.storage.locations import redact_url
from pipeline.storage.stored_arrays import StoredArray

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_METADATA = "__metadata__"
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


def tensor_arrays(url: str) -> dict[str, StoredArray]:
    """Return the tensors by name; those of types that numpy lacks, but for bfloat16, left out.

    Raises:
        ValueError: if the header is none, or its tensors don't fill the file end to end.
    """
    with locations.open_for_reading(url) as file:
        size = int(file.seek(0, 2))
        file.seek(0)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        begin = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or begin > size or length > _MOST_HEADER_BYTES:
            raise _unreadable(url, f"its header claims {length} bytes")
        text = file.read(length)
    entries = _entries(text, url)
    found: dict[str, StoredArray] = {}
    places = []
    for name, entry in entries.items():
        what = f"{name!a} of {redact_url(url)}"
        kind, shape, (start, stop) = _checked(entry, what)
        places.append((start, stop))
        if kind not in _TYPES:
            continue
        array = StoredArray(
            url=url,
            what=what,
            shape=shape,
            dtype=np.dtype(_TYPES[kind]),
            offset=begin + start,
            bfloat16=kind == "BF16",
        )
        if stop - start != array.bytes:
            raise ValueError(f"{what} has {stop - start} bytes for {kind} of shape {shape}")
        found[name] = array
    position = 0
    for start, stop in sorted(places):
        if start != position:
            raise _unreadable(url, "its tensors overlap, or leave a gap")
        position = stop
    if position != size - begin:
        raise ValueError(f"{redact_url(url)} is cut short: its size does not fit its header")
    return found


def _entries(text: bytes, url: str) -> dict[str, Any]:
    """Return the entries of a header, its free text left out."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("it names something twice")
        return dict(pairs)

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _unreadable(url, f"its header is damaged ({error})") from error
    if not isinstance(entries, dict):
        raise _unreadable(url, "its header is no JSON object")
    entries.pop(_METADATA, None)
    return entries


def _checked(entry: object, what: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Return a tensor's type, shape and place; raises ValueError if they are none."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            natural = all(type(size) is int and size >= 0 for size in (*shape, start, stop))
            if natural and start <= stop and math.prod(shape) < 2**62:
                return kind, tuple(shape), (start, stop)
    raise ValueError(f"{what} has no type, shape and place in the file's header; it is damaged")


def _unreadable(url: str, why: str) -> ValueError:
    return ValueError(f"{redact_url(url)} is not a readable .safetensors: {why}")
