"""Parquet files: how they are cut, how a slice is read."""

from __future__ import annotations

import json
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.schema import EMBEDDING
from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects, as_bytes
from pipeline.storage.corpus import Corpus, Unit, carries_embeddings
from pipeline.storage.locations import redact_url
from pipeline.storage.row_groups import plain_embeddings
from pipeline.storage.slices import (
    FileFacts,
    Slice,
    changed,
    combined,
    file_digest,
    not_a_list_of_floats,
    require_columns,
    unchanged,
)

_BATCH_ROWS = 8192
_BUFFER_BYTES = 256 * 2**10
"""Read at once from a local file: one buffer used again spares the memory of a whole chunk."""
_MOST_ROWS_A_BYTE = 1024
"""More rows than this a byte of a file are a lie of its footer: even equal rows need some room."""


def cut_parquet(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a Parquet file at row groups: small ones merged, large ones split by row range.

    Raises:
        ValueError: if it is no Parquet file, has no row, or lacks a column or has it in a type
            that is not read.
    """
    try:
        with locations.open_for_reading(url) as file:
            parquet = pq.ParquetFile(file)
            facts = _parquet_facts(corpus, url, parquet)
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            size = int(file.seek(0, 2))
        digest = file_digest(url)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{redact_url(url)} is not a readable Parquet file: {error}") from error
    if min(groups, default=0) < 0 or sum(groups) > _MOST_ROWS_A_BYTE * size:
        raise ValueError(
            f"{redact_url(url)} is not a readable Parquet file: its footer claims {sum(groups)} "
            f"rows in {size} bytes"
        )
    if not sum(groups):
        raise ValueError(f"{redact_url(url)} has no row")
    slices = [
        Slice(start=start, stop=stop, digest=_slice_digest(digest, start, stop))
        for start, stop in row_ranges(groups, rows_per_shard)
    ]
    return FileFacts(slices=tuple(slices), **facts)


def row_ranges(groups: list[int], rows_per_shard: int) -> list[tuple[int, int]]:
    """Return row ranges of at most `rows_per_shard` rows that keep whole row groups together."""
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    for rows in groups:
        if stop - start + rows > rows_per_shard and stop > start:
            ranges.append((start, stop))
            start = stop
        stop += rows
        while stop - start > rows_per_shard:
            ranges.append((start, start + rows_per_shard))
            start += rows_per_shard
    if stop > start:
        ranges.append((start, stop))
    return ranges


def _slice_digest(file_digest: str, start: int, stop: int) -> str:
    return combined(file_digest, start, stop)


def _digest_now(unit: Unit) -> str:
    return _slice_digest(file_digest(unit.path), unit.start, unit.stop)


def _parquet_facts(corpus: Corpus, url: str, parquet: pq.ParquetFile) -> dict[str, Any]:
    """Check the columns that are read and their types."""
    schema = parquet.schema_arrow
    wanted = list(corpus.passed_through)
    if corpus.embedding_column is not None:
        wanted.append(corpus.embedding_column)
    else:
        wanted.append(corpus.text_column if corpus.modality == "text" else corpus.image_column)
    if corpus.id_column != "id":
        wanted.append(corpus.id_column)
    require_columns(wanted, schema.names, url)

    def check(column: str, fits: bool, meaning: str) -> None:
        if not fits:
            kind = schema.field(column).type
            raise ValueError(f"column {column!r} of {redact_url(url)} is {kind}, not {meaning}")

    has_ids = corpus.id_column in schema.names
    if has_ids:
        kind = plain_type(schema.field(corpus.id_column).type)
        check(corpus.id_column, is_text(kind) or pa.types.is_integer(kind), "strings or integers")
    if corpus.text_column in schema.names and corpus.modality == "text":
        kind = plain_type(schema.field(corpus.text_column).type)
        check(corpus.text_column, is_text(kind) or pa.types.is_null(kind), "text")
    if corpus.modality == "image" and corpus.embedding_column is None:
        kind = schema.field(corpus.image_column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        check(
            corpus.image_column,
            pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
            "image bytes or a struct with the field bytes",
        )
    dimension = None
    if corpus.embedding_column is not None:
        dimension = _embedding_width(parquet, corpus.embedding_column, url)
    passed = pa.schema([schema.field(name).remove_metadata() for name in corpus.passed_through])
    return {"has_ids": has_ids, "dimension": dimension, "passed_through": passed}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, whether they stand in a dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is one of strings or bytes."""
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _embedding_width(parquet: pq.ParquetFile, column: str, url: str) -> int | None:
    """Return the width of the first row that has one, None if the first batch has none."""
    kind = parquet.schema_arrow.field(column).type
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise ValueError(not_a_list_of_floats(column, url, kind))
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
        widths = [len(value) for value in batch.column(0) if value.is_valid]
        if widths:
            return widths[0]
    return None


def read_parquet(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a Parquet file, the columns asked for only.

    Raises:
        ValueError: if the file is damaged, or changed since it was planned.
    """
    embeddings = carries_embeddings(corpus, unit.format)
    try:
        with unchanged(unit, _digest_now), locations.open_for_reading(unit.path) as file:
            # A store is asked for whole chunks at once: each request of it takes its time.
            local = locations.is_local(unit.path)
            parquet = pq.ParquetFile(
                file, buffer_size=_BUFFER_BYTES if local else 0, pre_buffer=not local
            )
            columns = _columns(corpus, unit, parquet, embeddings)
            vectors = _plain_vectors(corpus, file, parquet, unit) if embeddings else None
            if vectors is not None:
                columns.remove(EMBEDDING)
            table = read_rows(parquet, unit, columns)
    except (pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(f"cannot read {redact_url(unit.path)}: {line}") from error
    if table.num_rows != unit.rows:
        raise changed(unit.path)
    there = set(table.column_names)
    text = image = None
    if corpus.text_column in there and (embeddings or corpus.modality == "text"):
        column = table.column(corpus.text_column)
        if not (is_text(plain_type(column.type)) or pa.types.is_null(column.type)):
            raise ValueError(
                f"column {corpus.text_column!r} of {redact_url(unit.path)} is {column.type}, "
                "not text"
            )
        text = as_bytes(_undictionaried(column))
    if embeddings:
        if vectors is None:
            vectors = table.column(corpus.embedding_column or EMBEDDING)
    elif corpus.modality == "image":
        image = _image_bytes(table.column(corpus.image_column))

    def content(row: int) -> bytes | None:
        column = image if text is None or text[row].as_py() is None else text
        if column is not None:
            return cast(bytes | None, column[row].as_py())
        return json.dumps(vectors[row].as_py()).encode() if vectors is not None else None

    return RawRows(
        rejects=Rejects(unit.rows),
        content=content,
        ids=table.column(corpus.id_column) if unit.has_ids else None,
        text=text,
        image=image,
        embedding=vectors,
        passed_through={
            one.name: as_planned(table.column(one.name), one.type, one.name, unit.path)
            for one in unit.passed_through_schema
        },
    )


def _columns(corpus: Corpus, unit: Unit, parquet: pq.ParquetFile, embeddings: bool) -> list[str]:
    """Return the columns to read; raises ValueError if the file lacks one."""
    there = parquet.schema_arrow.names
    wanted = [corpus.id_column] if unit.has_ids else []
    if embeddings:
        wanted.append(corpus.embedding_column or EMBEDDING)
        wanted += [corpus.text_column] if corpus.text_column in there else []
    else:
        wanted.append(corpus.text_column if corpus.modality == "text" else corpus.image_column)
    wanted += unit.passed_through_schema.names
    require_columns(wanted, there, unit.path)
    return list(dict.fromkeys(wanted))


def _plain_vectors(
    corpus: Corpus, file: Any, parquet: pq.ParquetFile, unit: Unit
) -> pa.ChunkedArray | None:
    """Return the embeddings (n, d) of a shard of ours without decoding them, None if they must be.

    Raises:
        OSError: if the file is cut short.
    """
    if unit.format != "dataset" or unit.rows != parquet.metadata.num_rows:
        return None
    if corpus.embedding_column not in (None, EMBEDDING):
        return None
    groups = []
    for index in range(parquet.num_row_groups):
        values = plain_embeddings(file, parquet, index)
        if values is None:
            return None
        flat = pa.array(values.reshape(-1))
        groups.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
    return pa.chunked_array(groups) if groups else None


def read_rows(parquet: pq.ParquetFile, unit: Unit, columns: list[str]) -> pa.Table:
    """Return rows [start, stop), reading the row groups that hold them batch by batch."""
    groups: list[int] = []
    before = seen = 0
    for index in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(index).num_rows
        if seen + rows <= unit.start:
            before = seen + rows
        elif seen < unit.stop:
            groups.append(index)
        seen += rows
    batches: list[pa.RecordBatch] = []
    position = before
    # One thread: a worker has one CPU, and nearly all is one column.
    for batch in parquet.iter_batches(
        _BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False
    ):
        begin = max(unit.start - position, 0)
        position += batch.num_rows
        length = batch.num_rows - begin - max(position - unit.stop, 0)
        if length > 0:
            batches.append(batch.slice(begin, length))
        if position >= unit.stop:
            break
    schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(batches) if batches else schema.empty_table()


def _image_bytes(column: Any) -> Any:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return column.cast(pa.binary())


def _undictionaried(column: Any) -> Any:
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def as_planned(column: Any, kind: pa.DataType, name: str, url: str) -> Any:
    """Return a passed-through column in the type that the first file has."""
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise ValueError(
            f"column {name!r} of {redact_url(url)} is {column.type} and does not fit the {kind} "
            "of the other files; do not pass it through, or make them one type"
        ) from error
