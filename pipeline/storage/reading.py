"""Reading one unit: all its rows in order, the unusable ones marked with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.formats import Format
from pipeline.schema import (
    EMBEDDING,
    ID,
    IMAGE,
    REJECT,
    SOURCE,
    TEXT,
    RejectReason,
    embedding_type,
)
from pipeline.storage.array_files import read_npy, read_npz, read_safetensors
from pipeline.storage.clip_retrieval import read_clip_retrieval
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
from pipeline.storage.csv_files import read_csv
from pipeline.storage.duplicates import Duplicates, normalised, row_hashes
from pipeline.storage.image_files import read_images
from pipeline.storage.line_files import read_jsonl, read_text
from pipeline.storage.locations import redact_url
from pipeline.storage.mixing import chosen_rows
from pipeline.storage.norms import Norms
from pipeline.storage.parquet_files import read_parquet
from pipeline.storage.pickle_files import read_pickle
from pipeline.storage.slices import combined
from pipeline.storage.tar_files import read_tar


def read_unit(
    corpus: Corpus,
    unit: Unit,
    *,
    dimension: int | None = None,
    duplicates: Duplicates | None = None,
    norms: Norms | None = None,
) -> pa.Table:
    """Return all rows of a unit in order: row, id, text or image or embedding, content, reject.

    `reject` is null for good rows, else a `RejectReason`; `content` holds the raw bytes of
    rejected rows, cut at 64 KiB. Embeddings come L2-normalised, as fixed_size_list<float32>[d]
    with zeros in rejected rows; d is `dimension`, else the plan's. Passed-through columns follow,
    and the part of a mixed corpus as `source`. `duplicates` rejects what another unit keeps;
    `norms` counts those of given embeddings.

    Raises:
        ValueError: if the file cannot be read or was changed since it was planned.
    """
    corpus = corpus.of(unit)
    whole, places = unit.whole, chosen_rows(unit)
    embeddings = carries_embeddings(corpus, unit.format)
    stored = unit.format == "dataset"  # its rows were checked when they were written
    raw = _read(corpus, whole)
    rejects = raw.rejects
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"row": pa.array(np.arange(whole.rows))}
    if raw.ids is None:
        columns[ID] = _derived_ids(corpus, whole)
    else:
        ids = checked_ids(raw.ids, rejects)
        columns[ID] = ids if stored else safe_ids(ids, rejects)
    if raw.text is not None:
        columns[TEXT] = decoded_text(raw.text, rejects)
        if corpus.unicode != "none":
            columns[TEXT] = pc.utf8_normalize(columns[TEXT], form=corpus.unicode)
        if not embeddings:
            rejects.mark(blank(columns[TEXT]), RejectReason.EMPTY)
        if corpus.modality == "text" and not stored:
            mark_unfit_text(columns[TEXT], rejects, corpus.max_text_bytes)
    if raw.image is not None:
        columns[IMAGE] = raw.image
        sizes = pc.fill_null(pc.binary_length(raw.image), 0).to_numpy()
        rejects.mark(sizes == 0, RejectReason.UNDECODABLE_IMAGE)
    if embeddings:
        width = dimension or unit.dimension
        # Norms are said of whole slices: rows that are not taken would be counted too.
        counted = None if stored or places is not None else norms
        columns[EMBEDDING] = _embedding_column(raw, whole, width, rejects, counted)
    for name, column in raw.passed_through.items():
        mark_broken_text(column, rejects)
        columns[name] = column
    if unit.part:
        columns[SOURCE] = pa.array([unit.part]).take(pa.array(np.zeros(whole.rows, np.int64)))
    if places is not None:
        # Before rows are held against one another: none is lost to one that is not taken.
        columns = {name: column.take(pa.array(places)) for name, column in columns.items()}
        rejects = rejects.taken(places)
    if raw.ids is not None:
        mark_repeated(columns[ID], rejects, RejectReason.DUPLICATE_ID)
    if corpus.unique_texts and TEXT in columns:
        texts = [None if one is None else normalised(one) for one in columns[TEXT].to_pylist()]
        mark_repeated(pa.array(texts, pa.string()), rejects, RejectReason.DUPLICATE_TEXT)
    if duplicates is not None and len(duplicates):
        _mark_shared(unit, columns, rejects, duplicates)
    columns["content"] = _contents(raw, columns["row"].to_numpy(), rejects)
    columns[REJECT] = rejects.to_arrow()
    return pa.table(columns)


def _derived_ids(corpus: Corpus, unit: Unit) -> pa.Array:
    """Return ids (n,) made of a slice's content, and in a mixture of the column that is read."""
    digest = unit.digest
    if unit.part:
        # One file may be several sources, of a caption column each.
        digest = combined(unit.digest, corpus.text_column, corpus.embedding_column)
    return pa.array([f"{digest[:16]}-{row:06d}" for row in range(unit.rows)])


_READS: dict[Format, Callable[[Corpus, Unit], RawRows]] = {
    "text": read_text,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "images": read_images,
    "webdataset": read_tar,
    "npy": read_npy,
    "npz": read_npz,
    "safetensors": read_safetensors,
    "pickle": read_pickle,
    "clip-retrieval": read_clip_retrieval,
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
    raw: RawRows, unit: Unit, dimension: int | None, rejects: Rejects, norms: Norms | None
) -> pa.Array:
    assert dimension is not None, f"unit {unit.key} was planned without a dimension"
    values = unit_rows(raw.embedding, unit.rows, dimension, rejects, norms)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), type=embedding_type(dimension, "float32")
    )


def _mark_shared(
    unit: Unit, columns: dict[str, Any], rejects: Rejects, duplicates: Duplicates
) -> None:
    """Mark the rows whose id, or else whose caption, another unit keeps."""
    there = {name: columns[name] for name in (ID, TEXT) if name in columns}
    table = pa.table({**there, REJECT: rejects.to_arrow()})
    good = np.flatnonzero(rejects.good)
    hashes = row_hashes(table, texts=duplicates.texts is not None)
    reasons = (RejectReason.DUPLICATE_ID, RejectReason.DUPLICATE_TEXT)
    for lost, reason in zip(duplicates.rejected(unit.key, hashes), reasons, strict=True):
        mask = np.zeros(table.num_rows, dtype=np.bool_)
        mask[good[lost]] = True
        rejects.mark(mask, reason)


def _contents(raw: RawRows, rows: npt.NDArray[np.int64], rejects: Rejects) -> pa.Array:
    """Return the raw bytes, cut, of those of a slice's rows (n,) that are rejected; else null."""
    good = rejects.good
    contents = []
    for row in rows[~good]:
        content = raw.content(int(row))
        contents.append(None if content is None else content[:CONTENT_BYTES])
    # The index of a row's content is the number of rejected rows before it.
    places = pa.array(np.cumsum(~good) - 1, mask=good)
    return pa.array(contents, pa.binary()).take(places)
