"""CSV and TSV files with a header: how they are cut, how a slice is read (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.schema import RejectReason
from pipeline.storage.columns import RawRows, Rejects, decoded_text
from pipeline.storage.compressed import open_lines, read_lines
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.line_files import BYTE_ORDER_MARK, LinesDigest
from pipeline.storage.locations import redact_url
from pipeline.storage.slices import FileFacts, Slice, changed, combined, require_columns

_MOST_FIELD = 2**20
"""Characters of a field, unless captions may be longer: a quote that is never closed ends here."""


@dataclass(frozen=True)
class _Record:
    """A record's fields, None if it cannot be made out, and its bytes."""

    fields: list[str] | None
    data: bytes


def cut_csv(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a CSV file each `rows_per_shard` records; the first record names the columns.

    Raises:
        ValueError: if it has no header or no record, or lacks a column that is asked for.
    """
    slices: list[Slice] = []
    with open_lines(url) as file:
        records = _records(file, corpus, url, at_start=True)
        header, position = _header(records, url)
        wanted = [corpus.text_column, *corpus.passed_through]
        wanted += [corpus.id_column] if corpus.id_column != "id" else []
        if len(header) == 1 and ";" in header[0]:
            raise ValueError(
                f"{redact_url(url)} has semicolons between its columns; commas are read, and tabs "
                "in .tsv: convert it"
            )
        require_columns(wanted, header, url)
        start = rows = 0
        byte_start, digest = position, LinesDigest()

        def close() -> None:
            slices.append(
                Slice(
                    start=start,
                    stop=start + rows,
                    digest=combined(header, digest.close(rows)),
                    byte_start=byte_start,
                    byte_stop=position,
                )
            )

        for record in records:
            digest.update(record.data)
            position += len(record.data)
            rows += record.fields != []
            if rows == rows_per_shard:
                close()
                start, rows = start + rows, 0
                byte_start, digest = position, LinesDigest()
        if rows:
            close()
    if not slices:
        raise ValueError(f"{redact_url(url)} has no row below its header")
    return FileFacts(
        slices=tuple(slices),
        has_ids=corpus.id_column in header,
        passed_through=pa.schema([pa.field(name, pa.string()) for name in corpus.passed_through]),
    )


def read_csv(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the rows of a slice of a CSV file; raises ValueError if it changed since planned.

    A record with more or fewer fields than the header, or that breaks the rules of quoting, is
    marked malformed.
    """
    with open_lines(unit.path) as file:
        header, _ = _header(_records(file, corpus, unit.path, at_start=True), unit.path)
    data = read_lines(unit.path, unit.byte_start, unit.byte_stop)
    digest = LinesDigest()
    digest.update(data)
    records = [
        record for record in _records(io.BytesIO(data), corpus, unit.path) if record.fields != []
    ]
    if len(records) != unit.rows or combined(header, digest.close(unit.rows)) != unit.digest:
        raise changed(unit.path)
    rejects = Rejects(unit.rows)
    rows: list[list[str] | None] = []
    for row, record in enumerate(records):
        fits = record.fields is not None and len(record.fields) == len(header)
        rows.append(record.fields if fits else None)
        if not fits:
            rejects.mark_row(row, RejectReason.MALFORMED)

    def column(name: str) -> pa.Array:
        place = header.index(name)
        values = (None if one is None else one[place] for one in rows)
        raw = [None if one is None else one.encode("utf-8", "surrogateescape") for one in values]
        return pa.array(raw, pa.binary())

    return RawRows(
        rejects=rejects,
        content=lambda row: records[row].data,
        ids=column(corpus.id_column) if unit.has_ids else None,
        text=column(corpus.text_column),
        passed_through={
            name: decoded_text(column(name), rejects) for name in unit.passed_through_schema.names
        },
    )


def _header(records: Iterator[_Record], url: str) -> tuple[list[str], int]:
    """Return the columns' names and the bytes that they take, records of nothing before included.

    Raises:
        ValueError: if there are none, or two of one name.
    """
    size = 0
    for record in records:
        size += len(record.data)
        if record.fields is None:
            break
        if record.fields:
            if len(set(record.fields)) < len(record.fields):
                raise ValueError(f"{redact_url(url)} names two columns alike in its header")
            return record.fields, size
    raise ValueError(f"{redact_url(url)} has no header that names its columns")


def _records(
    lines: Iterable[bytes], corpus: Corpus, url: str, *, at_start: bool = False
) -> Iterator[_Record]:
    """Yield the records of lines, `at_start` of a file; one without fields is a blank line.

    Where a record cannot be made out its first line alone is given up, and the others are looked at
    again: a quote too many must not swallow the rows behind it.
    """
    csv.field_size_limit(max(_MOST_FIELD, corpus.max_text_bytes))
    source, waiting = iter(lines), deque[bytes]()
    taken: list[bytes] = []

    def decoded() -> Iterator[str]:
        nonlocal at_start
        while True:
            line = waiting.popleft() if waiting else next(source, b"")
            if not line:
                return
            taken.append(line)
            if at_start:
                line, at_start = line.removeprefix(BYTE_ORDER_MARK), False
            # Bytes that are not UTF-8 survive this way, and are found out where text is checked.
            yield line.decode("utf-8", "surrogateescape")

    delimiter = "\t" if ".tsv" in url.rsplit("/", 1)[-1].lower() else ","
    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            fields: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = None
            waiting.extendleft(reversed(taken[1:]))
            del taken[1:]
            # The generator ends with the file; what waits has to be read all the same.
            reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
        yield _Record(fields, b"".join(taken))
