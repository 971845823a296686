"""Pickled lists of rows, as ReVision's scripts write them: how they are cut, how a slice is read.

Nothing is unpickled: `plain_pickle` reads arrays, text, numbers, lists and dicts, and refuses all
else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import EMBEDDING, ID, TEXT, RejectReason
from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.kept import kept
from pipeline.storage.locations import listed, redact_url
from pipeline.storage.plain_pickle import PickledArray, RefusedPickleError, read_plain_pickle
from pipeline.storage.slices import (
    FileFacts,
    Slice,
    changed,
    combined,
    file_digest,
    unchanged,
)

MOST_BYTES = 4 * 2**30
"""A larger pickle is refused: it has to be in memory as a whole."""
_MOST_EXPANSION = 16
_ROOM_BYTES = 64 * 2**20
"""One object can stand in a pickle many times; rows that need more than this are a bomb."""
_EMBED_NAMES = ("embed", "embedding")
_TEXT_NAMES = ("caption", "text")
_UNUSABLE = "unusable"
_SAMPLED_ROWS = 1000
_one_at_a_time = threading.Lock()


def cut_pickle(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a pickled list of rows; the file is read as a whole, one at a time.

    Raises:
        ValueError: if it holds anything but rows of arrays, text and numbers, or lacks what is
            asked for.
    """
    with _one_at_a_time:
        rows = _rows(corpus, url)
        digest = file_digest(url)
    slices = [
        Slice(start=start, stop=stop, digest=combined(digest, start, stop))
        for start in range(0, rows.num_rows, rows_per_shard)
        for stop in (min(start + rows_per_shard, rows.num_rows),)
    ]
    widths = rows.column(EMBEDDING).combine_chunks().value_lengths().drop_null()
    return FileFacts(
        slices=tuple(slices),
        has_ids=rows.column(ID).null_count < rows.num_rows,
        dimension=widths[0].as_py() if len(widths) else None,
    )


def read_pickle(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a pickled list; raises ValueError if it changed.

    The file is read as a whole, and kept for its next unit in this process.
    """
    names = repr((corpus.id_column, corpus.text_column, corpus.embedding_column))
    with unchanged(unit, _digest_now):
        table = kept(
            unit.path, unit.identity, names, lambda: _rows(corpus, unit.path), lambda t: t.nbytes
        )
    if table.num_rows < unit.stop:
        raise changed(unit.path)
    table = table.slice(unit.start, unit.rows)
    rejects = Rejects(unit.rows)
    rejects.mark(table.column(_UNUSABLE).to_numpy(), RejectReason.MALFORMED)
    text, vectors = table.column(TEXT), table.column(EMBEDDING)

    def content(row: int) -> bytes | None:
        said = text[row].as_py()
        if said is not None:
            return cast(bytes, said)
        values = vectors[row].as_py()
        return json.dumps(values and [float(value) for value in values]).encode()

    return RawRows(
        rejects=rejects,
        content=content,
        ids=table.column(ID) if unit.has_ids else None,
        text=text if text.null_count < len(text) else None,
        embedding=vectors,
    )


def _digest_now(unit: Unit) -> str:
    return combined(file_digest(unit.path), unit.start, unit.stop)


def _rows(corpus: Corpus, url: str) -> pa.Table:
    """Return all rows of a file: id and text (binary), embedding (lists), whether unusable."""
    where = redact_url(url)
    size = locations.file_entry(url).size
    if size > MOST_BYTES:
        raise ValueError(
            f"{where} has {size} bytes, and a pickle is read as a whole ({MOST_BYTES} at most); "
            "save its rows as .safetensors or Parquet"
        )
    data = locations.read_bytes(url)
    try:
        records = _records(read_plain_pickle(data))
    except RefusedPickleError as error:
        raise ValueError(
            f"{where} is not read: {error}; of a pickle only lists of numpy arrays, text and "
            "numbers are, and nothing in it was run"
        ) from error
    if not records:
        raise ValueError(f"{where} has no row")
    names = _names(corpus, records, where)
    return _table(records, *names, _MOST_EXPANSION * len(data) + _ROOM_BYTES, where)


def _records(found: Any) -> list[Any]:
    """Return a pickle's rows: a list of dicts as it is, a dict of arrays by id as such a list."""
    if type(found) is list:
        return found
    if type(found) is dict and all(_is_vector(value) for value in found.values()):
        return [{"id": key, "embed": value} for key, value in found.items()]
    raise RefusedPickleError(
        "it is neither a list of rows ({'id': ..., 'embed': array (d,)}) nor a dict of arrays "
        "(d,) by id"
    )


def _is_vector(value: object) -> bool:
    return isinstance(value, PickledArray) and value.values is not None and value.values.ndim == 1


def _names(corpus: Corpus, records: Sequence[Any], where: str) -> tuple[str, str | None, str]:
    """Return the keys of id, text and embedding; raises ValueError if one is not in any row."""
    sample = [one for one in records[:_SAMPLED_ROWS] if type(one) is dict]
    there = sorted({str(name) for one in sample for name in one})

    def name(asked: str | None, usual: Sequence[str]) -> str | None:
        if asked is None:
            return next((one for one in usual if one in there), None)
        if asked not in there:
            raise ValueError(f"the rows of {where} have no {asked!r}; they have {listed(there)}")
        return asked

    embed = name(corpus.embedding_column, _EMBED_NAMES)
    if embed is None:
        raise ValueError(
            f"the rows of {where} have no {' or '.join(_EMBED_NAMES)}; they have "
            f"{listed(there)}; name it by {corpus.modality}.embedding_column"
        )
    text = name(None if corpus.text_column == "text" else corpus.text_column, _TEXT_NAMES)
    identifier = name(None if corpus.id_column == "id" else corpus.id_column, ["id"])
    return identifier or "id", text, embed


def _table(
    records: Sequence[Any], identifier: str, text: str | None, embed: str, most: int, where: str
) -> pa.Table:
    ids: list[bytes | None] = []
    texts: list[bytes | None] = []
    vectors: list[npt.NDArray[Any] | None] = []
    room = most
    for record in records:
        row = record if type(record) is dict else {}
        ids.append(_plain(row.get(identifier)))
        texts.append(_plain(row.get(text)) if text is not None else None)
        vectors.append(_vector(row.get(embed)))
        room -= sum(len(one) for one in (ids[-1], texts[-1]) if one is not None)
        room -= 0 if vectors[-1] is None else vectors[-1].nbytes
        if room < 0:
            raise ValueError(
                f"{where} holds more than {_MOST_EXPANSION} times its own size, by rows that "
                "share what they hold; save them as .safetensors or Parquet"
            )
    unusable = np.fromiter((one is None for one in vectors), np.bool_, len(vectors))
    there = [one for one in vectors if one is not None]
    flat = np.concatenate(there) if there else np.empty(0, np.float32)
    lengths = [0, *(0 if one is None else len(one) for one in vectors)]
    offsets = pa.array(np.cumsum(lengths, dtype=np.int64), mask=np.append(unusable, False))
    return pa.table(
        {
            ID: pa.array(ids, pa.large_binary()),
            TEXT: pa.array(texts, pa.large_binary()),
            EMBEDDING: pa.LargeListArray.from_arrays(offsets, pa.array(flat)),
            _UNUSABLE: pa.array(unusable),
        }
    )


def _plain(value: object) -> bytes | None:
    """Return text, or an integer's digits, as bytes; None for anything else."""
    if type(value) is int:
        return str(value).encode()
    return value.encode("utf-8", "surrogatepass") if type(value) is str else None


def _vector(value: object) -> npt.NDArray[Any] | None:
    """Return an embedding (d,) of floats in native byte order, None for anything else."""
    if isinstance(value, PickledArray) and value.values is not None:
        values = value.values
        if values.ndim == 2 and len(values) == 1:
            values = values[0]
        if values.ndim == 1 and values.dtype.kind == "f":
            return values.astype(values.dtype.newbyteorder("="), copy=False)
    if type(value) is list and value and all(type(one) in (float, int) for one in value):
        return np.array(value, dtype=np.float64)
    return None
