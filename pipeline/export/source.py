"""What is exported: one version of a dataset, pinned, its shards checked as they are read."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import EMBEDDING, ID, TEXT
from pipeline.storage import locations
from pipeline.storage.locations import redact_url
from pipeline.storage.manifest import Manifest, open_manifest
from pipeline.storage.receipts import Receipt

_AGAIN = "`anisoalign verify` says what else is wrong, running the night again writes it anew"
_OWN = (ID, TEXT, EMBEDDING)

Columns = tuple[tuple[str, str], ...]
"""Names and types of a shard's columns. As text: a pickled schema forgets what may be null."""


@dataclass(frozen=True)
class Source:
    """A version of a dataset of substitutes, and the shards of it that have rows, by path.

    `schema` is the one that every shard has.
    """

    root: str
    manifest: Manifest
    receipts: tuple[Receipt, ...]
    schema: pa.Schema


class Shard:
    """One shard in memory, its bytes those that its receipt names."""

    def __init__(self, where: str, data: bytes) -> None:
        self.where = where
        """Its URL without credentials, for messages."""
        self.data = data
        self._file = pq.ParquetFile(pa.BufferReader(data))

    @property
    def schema(self) -> pa.Schema:
        """Its columns."""
        return self._file.schema_arrow

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return int(self._file.metadata.num_rows)

    @property
    def passed_through(self) -> list[str]:
        """The names of the columns beside id, text and embedding."""
        return [name for name in self.schema.names if name not in _OWN]

    def table(self, columns: list[str]) -> pa.Table:
        """Return some columns."""
        return self._file.read(columns=columns)

    def ids(self) -> list[str]:
        """Return the rows' ids."""
        return self.table([ID]).column(ID).to_pylist()

    def texts(self) -> list[str | None]:
        """Return the rows' captions, None where there are none."""
        return self.table([TEXT]).column(TEXT).to_pylist()

    def values(self, name: str) -> list[Any]:
        """Return a passed-through column as values that JSON can hold."""
        column = self.table([name]).column(name)
        found = column.to_pylist()
        return found if _is_plain(column.type) else [_plain(value) for value in found]

    def embeddings(self) -> npt.NDArray[Any]:
        """Return the embeddings (n, d) as they are stored, float16 or float32."""
        column = self.table([EMBEDDING]).column(EMBEDDING)
        assert column.null_count == 0, "an embedding column has no null rows"
        parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values.reshape(-1, column.type.list_size)


def open_source(root: str, version: str | None = None) -> Source:
    """Return the current version of a dataset, or the one named.

    Raises:
        ValueError: if there is none, if it holds no substitutes or no rows, or if its first shard
            is missing or damaged.
    """
    manifest = open_manifest(root, version)
    shown = redact_url(root)
    if manifest.kind != "substitutes":
        raise ValueError(
            f"{shown} holds {manifest.kind}, and only substitutes are exported; give the dataset/ "
            "folder that `anisoalign synthesize` wrote"
        )
    receipts = sorted((one for one in manifest.receipts if one.rows), key=lambda one: one.path)
    if not receipts:
        raise ValueError(f"version {manifest.version} of {shown} has no rows to export")
    return Source(
        root=root,
        manifest=manifest,
        receipts=tuple(receipts),
        schema=_schema(root, receipts[0]),
    )


def columns_of(schema: pa.Schema) -> Columns:
    """Return the names and types of columns."""
    return tuple((field.name, str(field.type)) for field in schema)


def read_shard(root: str, receipt: Receipt, columns: Columns) -> Shard:
    """Return a shard after checking bytes and sha256 against its receipt, and its columns.

    Raises:
        ValueError: if it is missing or damaged, or has other columns than the first shard.
    """
    shard = _read(root, receipt)
    if columns_of(shard.schema) != columns:
        raise ValueError(
            f"the shard {shard.where} has other columns than the first one; synthesize the dataset "
            "anew with one text.passed_through"
        )
    return shard


def _schema(root: str, receipt: Receipt) -> pa.Schema:
    """Return a shard's columns by its end alone; what else is wrong with it shows later."""
    url = locations.join_inside(root, receipt.path)
    try:
        with locations.open_for_reading(url) as file:
            return pq.read_schema(file)
    except FileNotFoundError:
        raise ValueError(f"the shard {redact_url(url)} is missing; {_AGAIN}") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, locations.StoreError):
            raise
        raise ValueError(f"the shard {redact_url(url)} is damaged; {_AGAIN}") from error


def _read(root: str, receipt: Receipt) -> Shard:
    url = locations.join_inside(root, receipt.path)
    where = redact_url(url)
    try:
        data = locations.read_bytes(url)
    except FileNotFoundError:
        raise ValueError(f"the shard {where} is missing; {_AGAIN}") from None
    if len(data) != receipt.bytes:
        raise ValueError(
            f"the shard {where} is damaged: {len(data)} bytes, not {receipt.bytes}; {_AGAIN}"
        )
    if hashlib.sha256(data).hexdigest() != receipt.sha256:
        raise ValueError(f"the shard {where} is damaged: its sha256 is not its receipt's; {_AGAIN}")
    try:
        shard = Shard(where, data)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the shard {where} is not Parquet; {_AGAIN}") from error
    missing = [name for name in _OWN if name not in shard.schema.names]
    if missing or shard.rows != receipt.rows:
        raise ValueError(f"the shard {where} is not what its receipt says; {_AGAIN}")
    return shard


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether a type's Python values are JSON values as they are."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    )


def _plain(value: Any) -> Any:
    """Return a value for JSON: times as ISO text, decimals and bytes as text, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, np.floating):  # float16
        return _plain(float(value))
    return value
