"""Folders of clip-retrieval: embeddings in numbered .npy files beside metadata of their rows.

`img_emb/img_emb_N.npy` and `text_emb/text_emb_N.npy` have a row for each row of
`metadata/metadata_N.parquet`; N is padded with zeros to the width of the largest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects, as_bytes
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.locations import redact_url
from pipeline.storage.parquet_files import as_planned, is_text, plain_type, read_rows
from pipeline.storage.slices import (
    FileFacts,
    Slice,
    changed,
    combined,
    file_digest,
    require_columns,
    unchanged,
)
from pipeline.storage.stored_arrays import npy_array, require_embeddings

_CAPTION = "caption"
_METADATA = "metadata"


def metadata_file(url: str) -> str | None:
    """Return the metadata of a file of embeddings, None in a folder that has none at all.

    Raises:
        ValueError: if the folder has metadata, but not of this number.
    """
    folder, _, name = url.rpartition("/")
    root = folder.rpartition("/")[0]
    number = _number(name)
    if number is None:
        raise ValueError(f"{redact_url(url)} has no number as clip-retrieval's files have")
    found = locations.join(root, _METADATA, f"{_METADATA}_{number}.parquet")
    if locations.exists(found):
        return found
    there = locations.list_files(locations.join(root, _METADATA))
    if not there:
        return None
    for entry in there:
        other = _number(entry.name)
        if other is not None and entry.name.endswith(".parquet") and int(other) == int(number):
            return entry.url
    raise ValueError(f"{redact_url(url)} has no metadata; {redact_url(found)} is not there")


def _number(name: str) -> str | None:
    found = re.search(r"_(\d{1,18})\.[a-z]+$", name)
    return found and found[1]


def cut_clip_retrieval(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a file of embeddings (rows, d) by rows, with its metadata.

    Raises:
        ValueError: if it is no 2-d array of floats, or its metadata has another number of rows,
            or lacks a column.
    """
    embeddings = npy_array(url)
    require_embeddings(embeddings)
    rows, dimension = embeddings.shape
    metadata = metadata_file(url)
    named = {"has_ids": False, "passed_through": pa.schema([])}
    if metadata is not None:
        named = _metadata_facts(corpus, metadata, rows, url)
    elif corpus.passed_through:
        require_columns(list(corpus.passed_through), [], url)
    digests = [file_digest(one) for one in (url, metadata) if one is not None]
    slices = [
        Slice(start=start, stop=stop, digest=combined(*digests, start, stop))
        for start in range(0, rows, rows_per_shard)
        for stop in (min(start + rows_per_shard, rows),)
    ]
    return FileFacts(slices=tuple(slices), dimension=dimension, ids_path=metadata, **named)


def _metadata_facts(corpus: Corpus, metadata: str, rows: int, url: str) -> dict[str, Any]:
    """Check the columns of a file of metadata that are read."""
    shown = redact_url(metadata)
    try:
        with locations.open_for_reading(metadata) as file:
            parquet = pq.ParquetFile(file)
            schema, counted = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{shown} is not a readable Parquet file: {error}") from error
    if counted != rows:
        raise ValueError(f"{shown} has {counted} rows, {redact_url(url)} has {rows}")
    wanted = list(corpus.passed_through)
    wanted += [corpus.id_column] if corpus.id_column != "id" else []
    wanted += [corpus.text_column] if corpus.text_column != "text" else []
    require_columns(wanted, schema.names, metadata)
    has_ids = corpus.id_column in schema.names
    if has_ids:
        kind = plain_type(schema.field(corpus.id_column).type)
        if not (is_text(kind) or pa.types.is_integer(kind)):
            raise ValueError(
                f"column {corpus.id_column!r} of {shown} is {kind}, not strings or integers"
            )
    caption = _caption(corpus, schema.names)
    if caption is not None:
        kind = plain_type(schema.field(caption).type)
        if not (is_text(kind) or pa.types.is_null(kind)):
            raise ValueError(f"column {caption!r} of {shown} is {kind}, not text")
    passed = [schema.field(name).remove_metadata() for name in corpus.passed_through]
    return {"has_ids": has_ids, "passed_through": pa.schema(passed)}


def _caption(corpus: Corpus, there: Sequence[str]) -> str | None:
    """Return the column of captions: the one named, else clip-retrieval's own."""
    usual = [_CAPTION, "text"] if corpus.text_column == "text" else [corpus.text_column]
    return next((name for name in usual if name in there), None)


def read_clip_retrieval(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of embeddings and of their metadata.

    Raises:
        ValueError: if a file is damaged, or changed since it was planned.
    """
    table = None
    with unchanged(unit, _digest_now):
        embeddings = npy_array(unit.path)
        if len(embeddings.shape) != 2 or embeddings.shape[0] < unit.stop:
            raise changed(unit.path)
        values = embeddings.rows(unit.start, unit.stop)
        if unit.ids_path is not None:
            table = _metadata_rows(corpus, unit, unit.ids_path)
    text = None
    if table is not None:
        caption = _caption(corpus, table.column_names)
        text = None if caption is None else _texts(table.column(caption))

    def content(row: int) -> bytes | None:
        said = None if text is None else text[row].as_py()
        return json.dumps(values[row].tolist()).encode() if said is None else bytes(said)

    return RawRows(
        rejects=Rejects(unit.rows),
        content=content,
        ids=table.column(corpus.id_column) if table is not None and unit.has_ids else None,
        text=text,
        embedding=values,
        passed_through={}
        if table is None
        else {
            one.name: as_planned(table.column(one.name), one.type, one.name, unit.ids_path or "")
            for one in unit.passed_through_schema
        },
    )


def _metadata_rows(corpus: Corpus, unit: Unit, metadata: str) -> pa.Table:
    try:
        with locations.open_for_reading(metadata) as file:
            parquet = pq.ParquetFile(file, pre_buffer=not locations.is_local(metadata))
            there = parquet.schema_arrow.names
            wanted = [corpus.id_column] if unit.has_ids else []
            caption = _caption(corpus, there)
            wanted += [caption] if caption is not None else []
            wanted += unit.passed_through_schema.names
            require_columns(wanted, there, metadata)
            # A table without columns would have no rows.
            columns = list(dict.fromkeys(wanted)) or there[:1]
            table = read_rows(parquet, unit, columns)
    except (pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(f"cannot read {redact_url(metadata)}: {line}") from error
    if table.num_rows != unit.rows:
        raise changed(metadata)
    return table


def _texts(column: Any) -> Any:
    kind = column.type
    return as_bytes(column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column)


def _digest_now(unit: Unit) -> str:
    digests = [file_digest(one) for one in (unit.path, unit.ids_path) if one is not None]
    return combined(*digests, unit.start, unit.stop)
