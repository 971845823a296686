"""Arrays of embeddings in .npy files: how they are cut, how a slice is read. Never unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects
from pipeline.storage.corpus import IDS_ENDINGS, Corpus, Unit
from pipeline.storage.line_files import LinesDigest, cut_lines, split_lines
from pipeline.storage.locations import redact_url
from pipeline.storage.slices import FileFacts, Slice, changed, combined, file_digest, unchanged


@dataclass(frozen=True, kw_only=True)
class NpyHeader:
    """The header of a .npy file; `offset` is where the rows begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def read(cls, url: str) -> NpyHeader:
        """Read a header; raises ValueError if it is none, of objects, or of another size."""
        with locations.open_for_reading(url) as file:
            try:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if read is None:
                    raise ValueError(f"version {version} of the format is not read")
                shape, fortran_order, dtype = read(file)
            except (ValueError, EOFError) as error:
                line = (str(error).splitlines() or ["damaged header"])[0]
                raise ValueError(f"{redact_url(url)} is not a readable .npy: {line}") from error
            offset = int(file.tell())
            size = int(file.seek(0, 2))
        if dtype.hasobject:
            raise ValueError(f"{redact_url(url)} holds Python objects, which are never loaded")
        if min(shape, default=0) < 0 or size != offset + dtype.itemsize * int(
            np.prod(shape, dtype=object)
        ):
            raise ValueError(f"{redact_url(url)} is cut short: its size does not fit its header")
        return cls(shape=shape, fortran_order=fortran_order, dtype=dtype, offset=offset)


def cut_npy(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a .npy of embeddings (rows, d) by rows, with its ids file if it has one.

    Raises:
        ValueError: if it is not a 2-d array of floats in C order, or its ids do not fit it.
    """
    header = NpyHeader.read(url)
    if len(header.shape) != 2 or header.dtype.kind != "f" or header.dtype.itemsize > 8:
        raise ValueError(
            f"{redact_url(url)} holds {header.dtype} of shape {header.shape}; embeddings are a "
            "2-d array (rows, dimension) of float16, float32 or float64"
        )
    if header.fortran_order:
        raise ValueError(
            f"{redact_url(url)} is in Fortran order; save numpy.ascontiguousarray of it instead"
        )
    rows, dimension = header.shape
    if not rows or not dimension:
        raise ValueError(f"{redact_url(url)} has no row")
    digest = file_digest(url)
    ranges = [(a, min(a + rows_per_shard, rows)) for a in range(0, rows, rows_per_shard)]
    ids_path = ids_file(corpus, url)
    ids: list[Slice]
    if ids_path is None:
        ids = [Slice(start=start, stop=stop, digest="") for start, stop in ranges]
    elif ids_path.endswith(".npy"):
        ids_header = NpyHeader.read(ids_path)
        if len(ids_header.shape) != 1 or ids_header.dtype.kind not in "US":
            raise ValueError(
                f"{redact_url(ids_path)} holds {ids_header.dtype} of shape {ids_header.shape}; "
                "ids are a 1-d array of strings"
            )
        whole = file_digest(ids_path)
        counted = ids_header.shape[0]
        ids = [Slice(start=start, stop=min(stop, counted), digest=whole) for start, stop in ranges]
    else:
        ids = cut_lines(ids_path, rows_per_shard)
    if ids[-1].stop != rows or len(ids) != len(ranges):
        raise ValueError(
            f"{redact_url(ids_path or '')} does not have one id for each of the {rows} rows of "
            f"{redact_url(url)}"
        )
    slices = [
        Slice(
            start=start,
            stop=stop,
            digest=combined(digest, start, stop, one.digest),
            byte_start=one.byte_start,
            byte_stop=one.byte_stop,
        )
        for (start, stop), one in zip(ranges, ids, strict=True)
    ]
    return FileFacts(
        slices=tuple(slices),
        has_ids=ids_path is not None,
        dimension=dimension,
        ids_path=ids_path,
    )


def ids_file(corpus: Corpus, url: str) -> str | None:
    """Return the ids file of a .npy: the one given, else a sibling, else none."""
    if corpus.ids_path is not None:
        if not locations.exists(corpus.ids_path):
            raise ValueError(f"there is no ids file {redact_url(corpus.ids_path)}")
        return locations.absolute(corpus.ids_path)
    siblings = [url.removesuffix(".npy") + ending for ending in IDS_ENDINGS]
    return next((sibling for sibling in siblings if locations.exists(sibling)), None)


def _digest_now(unit: Unit) -> str:
    """Return the digest that planning would give a slice now."""
    ids = ""
    if unit.ids_path is not None and unit.ids_path.endswith(".npy"):
        ids = file_digest(unit.ids_path)
    elif unit.ids_path is not None:
        lines = LinesDigest()
        lines.update(locations.read_bytes(unit.ids_path, unit.byte_start, unit.byte_stop))
        ids = lines.close(unit.rows)
    return combined(file_digest(unit.path), unit.start, unit.stop, ids)


def read_npy(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a .npy and of its ids; raises ValueError if it changed."""
    del corpus
    with unchanged(unit, _digest_now):
        return _read(unit)


def _read(unit: Unit) -> RawRows:
    header = NpyHeader.read(unit.path)
    if len(header.shape) != 2 or header.shape[0] < unit.stop:
        raise changed(unit.path)
    values = _rows_of(unit.path, header, unit.start, unit.stop).reshape(unit.rows, -1)
    ids = None
    if unit.ids_path is not None and unit.ids_path.endswith(".npy"):
        names = _rows_of(unit.ids_path, NpyHeader.read(unit.ids_path), unit.start, unit.stop)
        if names.dtype.kind == "S":
            ids = pa.array(names.tolist(), pa.binary())
        else:
            raw = [name.encode("utf-8", "surrogatepass") for name in names.tolist()]
            ids = pa.array(raw, pa.binary())
    elif unit.ids_path is not None:
        lines = split_lines(locations.read_bytes(unit.ids_path, unit.byte_start, unit.byte_stop))
        ids = pa.array(lines, pa.binary())
    if ids is not None and len(ids) != unit.rows:
        raise changed(unit.ids_path or "")
    return RawRows(
        rejects=Rejects(unit.rows),
        content=lambda row: json.dumps(values[row].tolist()).encode(),
        ids=ids,
        embedding=values,
    )


def _rows_of(url: str, header: NpyHeader, start: int, stop: int) -> npt.NDArray[Any]:
    """Return rows [start, stop) of an array file as a flat array in native byte order."""
    width = header.dtype.itemsize * int(np.prod(header.shape[1:], dtype=np.int64))
    data = locations.read_bytes(url, header.offset + start * width, header.offset + stop * width)
    flat = np.frombuffer(data, header.dtype)
    return flat.astype(header.dtype.newbyteorder("="), copy=False)
