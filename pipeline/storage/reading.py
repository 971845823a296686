"""Reading one unit: all its rows in order, the unusable ones marked with the reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.formats import Format
from pipeline.schema import EMBEDDING, ID, IMAGE, REJECT, TEXT, RejectReason, embedding_type
from pipeline.storage.array_files import read_npy
from pipeline.storage.columns import (
    CONTENT_BYTES,
    RawRows,
    Rejects,
    blank,
    checked_ids,
    decoded_text,
    mark_broken_text,
    mark_repeated,
    mark_unfit_text,
    safe_ids,
    unit_rows,
)
from pipeline.storage.corpus import Corpus, Unit, carries_embeddings
from pipeline.storage.duplicates import DuplicateIds, hash_ids
from pipeline.storage.image_files import read_images
from pipeline.storage.line_files import read_jsonl, read_text
from pipeline.storage.locations import redact_url
from pipeline.storage.parquet_files import read_parquet
from pipeline.storage.tar_files import read_tar


def read_unit(
    corpus: Corpus,
    unit: Unit,
    *,
    dimension: int | None = None,
    duplicate_ids: DuplicateIds | None = None,
) -> pa.Table:
    """Return all rows of a unit in order: row, id, text or image or embedding, content, reject.

    `reject` is null for good rows, else a `RejectReason`; `content` holds the raw bytes of
    rejected rows, cut at 64 KiB. Embeddings come L2-normalised, as fixed_size_list<float32>[d]
    with zeros in rejected rows; d is `dimension`, else the plan's. Passed-through columns follow.
    `duplicate_ids` rejects ids that another unit keeps.

    Raises:
        ValueError: if the file cannot be read or was changed since it was planned.
    """
    embeddings = carries_embeddings(corpus, unit.format)
    stored = unit.format == "dataset"  # its rows were checked when they were written
    raw = _read(corpus, unit)
    rejects = raw.rejects
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"row": pa.array(np.arange(unit.rows))}
    if raw.ids is None:
        columns[ID] = pa.array([f"{unit.digest[:16]}-{row:06d}" for row in range(unit.rows)])
    else:
        ids = checked_ids(raw.ids, rejects)
        columns[ID] = ids if stored else safe_ids(ids, rejects)
    if raw.text is not None:
        columns[TEXT] = decoded_text(raw.text, rejects)
        if not embeddings:
            rejects.mark(blank(columns[TEXT]), RejectReason.EMPTY)
        if corpus.modality == "text" and not stored:
            mark_unfit_text(columns[TEXT], rejects, corpus.max_text_bytes)
    if raw.image is not None:
        columns[IMAGE] = raw.image
        sizes = pc.fill_null(pc.binary_length(raw.image), 0).to_numpy()
        rejects.mark(sizes == 0, RejectReason.UNDECODABLE_IMAGE)
    if embeddings:
        columns[EMBEDDING] = _embedding_column(raw, unit, dimension or unit.dimension, rejects)
    for name, column in raw.passed_through.items():
        mark_broken_text(column, rejects)
        columns[name] = column
    if raw.ids is not None:
        _mark_duplicates(unit, columns[ID], rejects, duplicate_ids)
    columns["content"] = _contents(raw)
    columns[REJECT] = rejects.to_arrow()
    return pa.table(columns)


_READS: dict[Format, Callable[[Corpus, Unit], RawRows]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "images": read_images,
    "webdataset": read_tar,
    "npy": read_npy,
    "dataset": read_parquet,
}
"""How a slice of a file of each format is read."""


def _read(corpus: Corpus, unit: Unit) -> RawRows:
    try:
        return _READS[unit.format](corpus, unit)
    except FileNotFoundError as error:
        raise ValueError(
            f"{redact_url(unit.path)} is gone since the run was planned; start it again"
        ) from error


def _embedding_column(
    raw: RawRows, unit: Unit, dimension: int | None, rejects: Rejects
) -> pa.Array:
    assert dimension is not None, f"unit {unit.key} was planned without a dimension"
    values = unit_rows(raw.embedding, unit.rows, dimension, rejects)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), type=embedding_type(dimension, "float32")
    )


def _mark_duplicates(
    unit: Unit,
    ids: pa.Array | pa.ChunkedArray,
    rejects: Rejects,
    duplicate_ids: DuplicateIds | None,
) -> None:
    mark_repeated(ids, rejects)
    if duplicate_ids is None or not len(duplicate_ids):
        return
    good = np.flatnonzero(rejects.good)
    hashes = hash_ids(ids.take(pa.array(good)).to_pylist())
    mask = np.zeros(unit.rows, dtype=np.bool_)
    mask[good] = duplicate_ids.rejected(unit.key, hashes)
    rejects.mark(mask, RejectReason.DUPLICATE_ID)


def _contents(raw: RawRows) -> pa.Array:
    """Return the raw bytes of rejected rows, cut; null for good rows."""
    good = raw.rejects.good
    contents = []
    for row in np.flatnonzero(~good):
        content = raw.content(int(row))
        contents.append(None if content is None else content[:CONTENT_BYTES])
    # The index of a row's content is the number of rejected rows before it.
    places = pa.array(np.cumsum(~good) - 1, mask=good)
    return pa.array(contents, pa.binary()).take(places)
