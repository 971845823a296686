"""Text files (one row a line) and JSON lines: how they are cut, how a slice is read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.schema import RejectReason
from pipeline.storage.columns import RawRows, Rejects
from pipeline.storage.compressed import open_lines, read_lines
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.locations import redact_url
from pipeline.storage.slices import (
    CHUNK_BYTES,
    FileFacts,
    Slice,
    changed,
    combined,
    not_a_list_of_floats,
    require_columns,
)

SAMPLED_LINES = 1000
DEEPEST = 32
"""No column gets a type nested deeper than this; Arrow cannot read a schema of 64 levels back."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def cut_text(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a text file, one row a line; raises ValueError if it has no line."""
    del corpus  # a line is a caption, whatever it asks for
    return FileFacts(slices=tuple(cut_lines(url, rows_per_shard)))


def cut_jsonl(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a file of JSON lines and look at its first lines for ids, columns, types and width.

    Raises:
        ValueError: if it has no line, or none of the first lines has a column that is asked for.
    """
    slices = cut_lines(url, rows_per_shard)
    records = _sample(url, slices[0].byte_start)
    there = sorted({str(name) for record in records for name in record})
    wanted = [corpus.embedding_column or corpus.text_column, *corpus.passed_through]
    if corpus.id_column != "id":
        wanted.append(corpus.id_column)
    if records:
        require_columns(wanted, there, url)
    dimension = None
    if corpus.embedding_column is not None:
        found = [record.get(corpus.embedding_column) for record in records]
        vectors = [value for value in found if isinstance(value, list)]
        if records and not vectors:
            raise ValueError(not_a_list_of_floats(corpus.embedding_column, url))
        dimension = len(vectors[0]) if vectors else None
    return FileFacts(
        slices=tuple(slices),
        has_ids=corpus.id_column in there,
        dimension=dimension,
        passed_through=pa.schema(
            [
                pa.field(name, inferred_type([record.get(name) for record in records]))
                for name in corpus.passed_through
            ]
        ),
    )


class LinesDigest:
    """Digest of lines that leaves out the last line's ending.

    So a slice keeps its digest when a line is appended to a file that did not end in one.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=20)
        self._tail = b""

    def update(self, data: bytes) -> None:
        """Add bytes."""
        data = self._tail + data
        self._digest.update(data[:-2])
        self._tail = data[-2:]

    def close(self, rows: int) -> str:
        """Return the digest of the `rows` lines added."""
        self._digest.update(self._tail.removesuffix(b"\n").removesuffix(b"\r"))
        return combined(self._digest.hexdigest(), rows)


def cut_lines(url: str, rows_per_shard: int) -> list[Slice]:
    """Scan a file once and cut it each `rows_per_shard` lines; a byte order mark is passed over."""
    slices: list[Slice] = []
    digest = LinesDigest()
    start = rows = 0
    with open_lines(url) as file:
        chunk = file.read(CHUNK_BYTES)
        position = byte_start = len(BYTE_ORDER_MARK) if chunk.startswith(BYTE_ORDER_MARK) else 0
        chunk = chunk[position:]
        while chunk:
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + 1
            taken = begun = 0
            while rows + len(ends) - taken >= rows_per_shard:
                taken += rows_per_shard - rows
                end = int(ends[taken - 1])
                digest.update(chunk[begun:end])
                slices.append(
                    Slice(
                        start=start,
                        stop=start + rows_per_shard,
                        digest=digest.close(rows_per_shard),
                        byte_start=byte_start,
                        byte_stop=position + end,
                    )
                )
                start, rows, begun = start + rows_per_shard, 0, end
                byte_start, digest = position + end, LinesDigest()
            rows += len(ends) - taken
            digest.update(chunk[begun:])
            position += len(chunk)
            open_line = not chunk.endswith(b"\n")
            chunk = file.read(CHUNK_BYTES)
    if position > byte_start:
        rows += open_line
        slices.append(
            Slice(
                start=start,
                stop=start + rows,
                digest=digest.close(rows),
                byte_start=byte_start,
                byte_stop=position,
            )
        )
    if not slices:
        raise ValueError(f"{redact_url(url)} is empty")
    return slices


def _sample(url: str, byte_start: int) -> list[dict[str, Any]]:
    """Return the JSON objects among the first lines of a file."""
    records = []
    with open_lines(url) as file:
        file.read(byte_start)
        for _ in range(SAMPLED_LINES):
            line = file.readline()
            try:
                record = json.loads(line.decode("utf-8")) if line else None
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                records.append(record)
    return records


def inferred_type(values: list[Any]) -> pa.DataType:
    """Return the Arrow type of sampled JSON values; string where all are null.

    Where they do not go together, the first one's type: the others are found malformed when read,
    as those are that are nested too deeply.
    """
    values = [None if _deeper(value, DEEPEST) else value for value in values]
    for sample in (values, [value for value in values if value is not None][:1]):
        try:
            found = pa.array(sample).type
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            continue
        return pa.string() if pa.types.is_null(found) else found
    return pa.string()


def _deeper(value: Any, levels: int) -> bool:
    """Return whether a JSON value has more levels of lists and objects."""
    if not isinstance(value, list | dict):
        return False
    below = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in below)


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of `data` without their endings (LF or CRLF); a final one is no row."""
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if b"\r" in data:
        lines = [line.removesuffix(b"\r") for line in lines]
    return lines


def read_text(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a text file; raises ValueError if it changed since planned."""
    del corpus
    lines = _read_lines(unit)
    return RawRows(
        rejects=Rejects(len(lines)), content=lines.__getitem__, text=pa.array(lines, pa.binary())
    )


def read_jsonl(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of JSON lines; raises ValueError if it changed since planned.

    A line that is no JSON object, or whose id, text, embedding or passed-through value has another
    type than the column, is marked malformed.
    """
    lines = _read_lines(unit)
    rejects = Rejects(len(lines))
    records = [json_record(line, row, rejects) for row, line in enumerate(lines)]
    rows = RawRows(rejects=rejects, content=lines.__getitem__)

    def column(name: str, convert: Any) -> list[Any]:
        values: list[Any] = []
        for row, record in enumerate(records):
            try:
                values.append(convert(record.get(name)))
            except ValueError:
                values.append(None)
                rejects.mark_row(row, RejectReason.MALFORMED)
        return values

    if unit.has_ids:
        rows.ids = pa.array(column(corpus.id_column, id_bytes), pa.binary())
    if corpus.embedding_column is None:
        rows.text = pa.array(column(corpus.text_column, text_bytes), pa.binary())
    else:
        rows.text = pa.array(column(corpus.text_column, _optional_text_bytes), pa.binary())
        values = column(corpus.embedding_column, _list_or_none)
        rows.embedding = typed_column(values, pa.list_(pa.float64()), rejects)
    for one in unit.passed_through_schema:
        values = column(one.name, lambda value: value)
        rows.passed_through[one.name] = typed_column(values, one.type, rejects)
    return rows


def _read_lines(unit: Unit) -> list[bytes]:
    data = read_lines(unit.path, unit.byte_start, unit.byte_stop)
    lines = split_lines(data)
    digest = LinesDigest()
    digest.update(data)
    if len(lines) != unit.rows or digest.close(len(lines)) != unit.digest:
        raise changed(unit.path)
    return lines


def json_record(line: bytes, row: int, rejects: Rejects) -> dict[str, Any]:
    """Return the JSON object in a line; an empty one, with the row marked, if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        rejects.mark_row(row, RejectReason.NOT_UTF8)
        return {}
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return record
    rejects.mark_row(row, RejectReason.MALFORMED)
    return {}


def text_bytes(value: Any) -> bytes:
    """Return a JSON value as a caption's bytes; raises ValueError if it is no string."""
    if not isinstance(value, str):
        raise ValueError
    # JSON can escape half a surrogate pair, which is no UTF-8: kept here, found out by the check.
    return value.encode("utf-8", "surrogatepass")


def _optional_text_bytes(value: Any) -> bytes | None:
    return None if value is None else text_bytes(value)


def id_bytes(value: Any) -> bytes | None:
    """Return a JSON value as an id's bytes; raises ValueError if it is no string or integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).encode()
    return _optional_text_bytes(value)


def _list_or_none(value: Any) -> list[Any] | None:
    if value is not None and not isinstance(value, list):
        raise ValueError
    return value


def typed_column(values: list[Any], kind: pa.DataType, rejects: Rejects) -> Any:
    """Return values as an Arrow column; those that do not fit the type become null, marked."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
        fitting = []
        for row, value in enumerate(values):
            try:
                pa.array([value], kind)
                fitting.append(value)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
                fitting.append(None)
                rejects.mark_row(row, RejectReason.MALFORMED)
        return pa.array(fitting, kind)
