"""Embeddings in .npy, .npz and .safetensors: how they are cut, how a slice is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pipeline.formats import ARRAY_ENDINGS
from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects
from pipeline.storage.corpus import IDS_ENDINGS, Corpus, Unit
from pipeline.storage.line_files import LinesDigest, cut_lines, split_lines
from pipeline.storage.locations import redact_url
from pipeline.storage.npz_files import npz_arrays
from pipeline.storage.safetensors_files import tensor_arrays
from pipeline.storage.slices import FileFacts, Slice, changed, combined, file_digest, unchanged
from pipeline.storage.stored_arrays import (
    StoredArray,
    chosen_embeddings,
    chosen_ids,
    npy_array,
    require_embeddings,
    require_ids,
)

Chosen = tuple[StoredArray, StoredArray | None]
"""The embeddings of a file, and its ids if it has them itself."""
Choose = Callable[[Corpus, str, str | None], Chosen]


def cut_npy(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a .npy of embeddings (rows, d) by rows, with its ids file if it has one.

    Raises:
        ValueError: if it is not a 2-d array of floats in C order, or its ids do not fit it.
    """
    return _cut(corpus, url, rows_per_shard, _of_npy)


def cut_npz(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut the embeddings (rows, d) of a .npz by rows, with its ids; raises as `cut_npy`."""
    return _cut(corpus, url, rows_per_shard, _of_npz)


def cut_safetensors(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut the embeddings (rows, d) of a .safetensors by rows; raises as `cut_npy`."""
    return _cut(corpus, url, rows_per_shard, _of_safetensors)


def _of_npy(corpus: Corpus, url: str, identity: str | None) -> Chosen:
    del corpus, identity  # a .npy has one array
    return npy_array(url), None


def _of_npz(corpus: Corpus, url: str, identity: str | None) -> Chosen:
    arrays = npz_arrays(url, identity)
    return chosen_embeddings(corpus, arrays, url), chosen_ids(corpus, arrays, url)


def _of_safetensors(corpus: Corpus, url: str, identity: str | None) -> Chosen:
    del identity  # nothing of it is decoded as a whole
    arrays = tensor_arrays(url)
    return chosen_embeddings(corpus, arrays, url), chosen_ids(corpus, arrays, url)


def _cut(corpus: Corpus, url: str, rows_per_shard: int, choose: Choose) -> FileFacts:
    embeddings, own_ids = choose(corpus, url, None)
    require_embeddings(embeddings)
    rows, dimension = embeddings.shape
    digest = file_digest(url)
    ranges = [(a, min(a + rows_per_shard, rows)) for a in range(0, rows, rows_per_shard)]
    ids_path = ids_file(corpus, url)
    ids: list[Slice]
    if ids_path is None:
        if own_ids is not None:
            require_ids(own_ids)
            if own_ids.shape[0] != rows:
                raise ValueError(
                    f"{own_ids.what} has {own_ids.shape[0]} ids for the {rows} rows of "
                    f"{embeddings.what}"
                )
        ids = [Slice(start=start, stop=stop, digest="") for start, stop in ranges]
    elif ids_path.endswith(".npy"):
        array = npy_array(ids_path)
        require_ids(array)
        whole = file_digest(ids_path)
        fitting = ranges if array.shape[0] == rows else []
        ids = [Slice(start=start, stop=stop, digest=whole) for start, stop in fitting]
    else:
        ids = cut_lines(ids_path, rows_per_shard)
    if len(ids) != len(ranges) or ids[-1].stop != rows:
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
        has_ids=ids_path is not None or own_ids is not None,
        dimension=dimension,
        ids_path=ids_path,
    )


def ids_file(corpus: Corpus, url: str) -> str | None:
    """Return the ids file of a file of arrays: the one given, else a sibling, else none."""
    if corpus.ids_path is not None:
        if not locations.exists(corpus.ids_path):
            raise ValueError(f"there is no ids file {redact_url(corpus.ids_path)}")
        return locations.absolute(corpus.ids_path)
    ending = next((ending for ending in ARRAY_ENDINGS if url.endswith(ending)), "")
    siblings = [url.removesuffix(ending) + named for named in IDS_ENDINGS]
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
    return _read(corpus, unit, _of_npy)


def read_npz(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a .npz and of its ids; raises ValueError if it changed."""
    return _read(corpus, unit, _of_npz)


def read_safetensors(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a .safetensors; raises ValueError if it changed."""
    return _read(corpus, unit, _of_safetensors)


def _read(corpus: Corpus, unit: Unit, choose: Choose) -> RawRows:
    with unchanged(unit, _digest_now):
        embeddings, own_ids = choose(corpus, unit.path, unit.identity)
        if len(embeddings.shape) != 2 or embeddings.shape[0] < unit.stop:
            raise changed(unit.path)
        values = embeddings.rows(unit.start, unit.stop)
        ids = None
        if unit.ids_path is not None and not unit.ids_path.endswith(".npy"):
            data = locations.read_bytes(unit.ids_path, unit.byte_start, unit.byte_stop)
            ids = pa.array(split_lines(data), pa.binary())
        elif unit.ids_path is not None:
            ids = id_column(npy_array(unit.ids_path), unit)
        elif own_ids is not None:
            ids = id_column(own_ids, unit)
        if ids is not None and len(ids) != unit.rows:
            raise changed(unit.ids_path or unit.path)
    return RawRows(
        rejects=Rejects(unit.rows),
        content=lambda row: json.dumps(values[row].tolist()).encode(),
        ids=ids,
        embedding=values,
    )


def id_column(array: StoredArray, unit: Unit) -> Any:
    """Return the ids of a unit as an Arrow column of integers or bytes."""
    names = array.rows(unit.start, min(unit.stop, array.shape[0]))
    if names.dtype.kind in "iu":
        return pa.array(names)
    if names.dtype.kind == "S":
        return pa.array(names.tolist(), pa.binary())
    raw = [name.encode("utf-8", "surrogatepass") for name in names.tolist()]
    return pa.array(raw, pa.binary())
