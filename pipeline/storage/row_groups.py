"""Where the rows of a Parquet file's embedding column stand, byte by byte, without decoding it.

A column chunk that is one plain uncompressed page ends with its values, one after the other, so
that row r of a row group begins r * d * itemsize bytes after the group's first. Older shards and
those of float32 are not so, and have to be decoded a row group at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import EMBEDDING

DECODE = -1
"""In place of an offset: this row group's values have to be decoded."""
_HEADER_BYTES = 128
_LEAF = f"{EMBEDDING}.list.element"
_DATA_PAGE = 0


def embedding_groups(file: Any, parquet: pq.ParquetFile) -> npt.NDArray[np.int64]:
    """Return each row group's first row and the offset of its first value, or DECODE: (g, 2).

    `file` is the open file that `parquet` reads.
    """
    kind = parquet.schema_arrow.field(EMBEDDING).type
    groups = np.empty((parquet.num_row_groups, 2), np.int64)
    first = 0
    for index in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(index)
        groups[index] = first, _values_offset(file, group, kind)
        first += group.num_rows
    return groups


def plain_embeddings(file: Any, parquet: pq.ParquetFile, index: int) -> npt.NDArray[Any] | None:
    """Return the embeddings (n, d) of a row group, None if they have to be decoded.

    One read of the open file that `parquet` reads; decoding takes five times as long.

    Raises:
        OSError: if the file is cut short.
    """
    group, kind = parquet.metadata.row_group(index), parquet.schema_arrow.field(EMBEDDING).type
    chunk = _plain_chunk(group)
    if chunk is None or kind.value_field.nullable:  # a null among them would have no bytes
        return None
    values = group.num_rows * kind.list_size
    file.seek(chunk.data_page_offset)
    data = file.read(chunk.total_compressed_size)
    if len(data) != chunk.total_compressed_size:
        raise OSError("it was cut short")
    if _first_page(data[:_HEADER_BYTES]) != (_DATA_PAGE, values):
        return None
    dtype = np.dtype(kind.value_type.to_pandas_dtype()).newbyteorder("<")
    start = len(data) - values * dtype.itemsize
    if start < 0:
        raise OSError("it claims more values than it has")
    return np.frombuffer(data, dtype, offset=start).reshape(-1, kind.list_size)


def _values_offset(file: Any, group: Any, kind: pa.DataType) -> int:
    """Return where the values of a row group's embeddings begin, DECODE where that is not known."""
    chunk = _plain_chunk(group)
    if chunk is None:
        return DECODE
    values = group.num_rows * kind.list_size
    file.seek(chunk.data_page_offset)
    if _first_page(file.read(_HEADER_BYTES)) != (_DATA_PAGE, values):
        return DECODE
    # The one page holds every value, so the chunk ends with them.
    size = values * kind.value_type.bit_width // 8
    return int(chunk.data_page_offset + chunk.total_compressed_size - size)


def _plain_chunk(group: Any) -> Any | None:
    """Return the chunk of a row group's embeddings if it is neither compressed nor encoded."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunk = next((one for one in chunks if one.path_in_schema == _LEAF), None)
    if chunk is None or chunk.compression != "UNCOMPRESSED" or chunk.dictionary_page_offset:
        return None
    return chunk if {"PLAIN"} <= set(chunk.encodings) <= {"PLAIN", "RLE"} else None


def _first_page(data: bytes) -> tuple[int, int] | None:
    """Return a page header's type and number of values, None for a header of another shape.

    The header is Thrift's compact protocol: a byte of (field's step, type), then the value;
    integers (type 5) are zigzag varints, a struct's (type 12) fields follow.
    """
    read = iter(data)
    field = 0
    numbers: dict[int, int] = {}
    try:
        while True:
            head = next(read)
            field, kind = field + (head >> 4), head & 15
            if kind == 12 and field == 5:  # data_page_header, whose first field counts values
                return (numbers[1], _varint(read)) if next(read) == 0x15 else None
            if kind != 5 or not head >> 4:
                return None
            numbers[field] = _varint(read)
    except (StopIteration, KeyError):
        return None


def _varint(read: Any) -> int:
    value = shift = 0
    while True:
        byte = next(read)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1)
