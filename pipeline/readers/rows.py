"""Rows of shards, a range at a time: only the row groups and columns asked for are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.readers.version import PinnedVersion, ShardError, shard_error
from pipeline.schema import EMBEDDING
from pipeline.storage import locations
from pipeline.storage.locations import redact_url
from pipeline.storage.row_groups import plain_embeddings
from pipeline.storage.shards import stored_embeddings


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows: all columns but the embeddings, and those (n, d), None if not asked for."""

    others: pa.Table
    embeddings: npt.NDArray[Any] | None

    def part(self, start: int, stop: int) -> Rows:
        """Return the rows [start, stop)."""
        values = None if self.embeddings is None else self.embeddings[start:stop]
        return Rows(self.others.slice(start, stop - start), values)


class RowReader:
    """Reads ranges of rows of a version's shards; keeps one shard open and one row group.

    `schema` has the columns to read and the types that every shard must have them in.
    """

    def __init__(self, version: PinnedVersion, schema: pa.Schema) -> None:
        self._version, self._schema = version, schema
        self._others = [name for name in schema.names if name != EMBEDDING]
        self._embeds = EMBEDDING in schema.names
        self._number = -1
        self._file: Any = None
        self._parquet: pq.ParquetFile | None = None
        self._starts: list[int] = []
        self._group = -1
        self._rows: Rows | None = None

    def close(self) -> None:
        """Close the shard that is open."""
        if self._file is not None:
            self._file.close()
        self._file = self._parquet = self._rows = None
        self._number = self._group = -1

    def facts(self, shard: int) -> tuple[pa.Schema, set[str]]:
        """Return a shard's schema, and its columns that its footer says to be null throughout."""
        self._open(shard)
        assert self._parquet is not None
        metadata = self._parquet.metadata
        nulls: dict[str, int] = {}
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                if column.statistics is not None and column.statistics.has_null_count:
                    name = column.path_in_schema
                    nulls[name] = nulls.get(name, 0) + column.statistics.null_count
        return self._parquet.schema_arrow, {
            name for name, count in nulls.items() if count == metadata.num_rows
        }

    def read(self, shard: int, start: int, stop: int) -> Iterator[Rows]:
        """Yield the rows [start, stop) of a shard, a row group's at a time.

        Raises:
            ShardError: if it is missing, damaged, not what its manifest says, or has a column in
                another type.
        """
        self._open(shard)
        for group in range(len(self._starts) - 1):
            first, end = self._starts[group], self._starts[group + 1]
            if first < stop and end > start:
                begin = max(start, first)
                yield self._read_group(group).part(begin - first, min(stop, end) - first)

    def _open(self, shard: int) -> None:
        if shard == self._number:
            return
        self.close()
        one = self._version.shards[shard]
        url = locations.join_inside(self._version.root, one.path)
        try:
            self._file = locations.open_for_reading(url)
            size = self._file.seek(0, 2)
            if size != one.bytes:
                raise shard_error(
                    self._version.root, one.path, f"it has {size} bytes, not the {one.bytes} it had"
                )
            self._parquet = pq.ParquetFile(self._file)
        except FileNotFoundError:
            raise shard_error(self._version.root, one.path, "it is missing") from None
        except (pa.ArrowException, OSError) as error:
            raise shard_error(self._version.root, one.path, _line(error)) from error
        metadata = self._parquet.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        if self._starts[-1] != one.rows:
            rows = self._starts[-1]
            raise shard_error(
                self._version.root, one.path, f"it has {rows} rows, not the {one.rows} it had"
            )
        self._check_types(one.path, self._parquet.schema_arrow)
        self._number = shard

    def _check_types(self, path: str, there: pa.Schema) -> None:
        for field in self._schema:
            index = there.get_field_index(field.name)
            if index < 0 or there.field(index).type != field.type:
                found = "missing" if index < 0 else f"of type {there.field(index).type}"
                where = locations.join(redact_url(self._version.root), path)
                raise ShardError(
                    f"the column {field.name} is {found} in the shard {where} and of type "
                    f"{field.type} in the first; leave it out of `columns`, or make the corpus's "
                    "files alike"
                )

    def _read_group(self, group: int) -> Rows:
        if group != self._group or self._rows is None:
            assert self._parquet is not None
            self._rows = None  # before the next is read, so that never two are held
            try:
                self._rows = self._decoded(self._parquet, group)
            except (pa.ArrowException, OSError) as error:
                path = self._version.shards[self._number].path
                raise shard_error(self._version.root, path, _line(error)) from error
            self._group = group
        return self._rows

    def _decoded(self, parquet: pq.ParquetFile, group: int) -> Rows:
        values, columns = None, list(self._others)
        if self._embeds:
            values = plain_embeddings(self._file, parquet, group)
            columns += [EMBEDDING] if values is None else []
        table = parquet.read_row_group(group, columns=columns, use_threads=False)
        if self._embeds and values is None:
            values = stored_embeddings(table)
        return Rows(table.select(self._others), values)


def first_schema(version: PinnedVersion, shard: int) -> tuple[pa.Schema, set[str]]:
    """Return a shard's schema and its columns of nulls alone.

    Raises:
        ShardError: if it is missing, damaged, or not what its manifest says.
    """
    reader = RowReader(version, pa.schema([]))
    try:
        return reader.facts(shard)
    finally:
        reader.close()


def _line(error: BaseException) -> str:
    return locations.redact_url((str(error).splitlines() or [type(error).__name__])[0])
