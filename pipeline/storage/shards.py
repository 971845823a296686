"""Shards: what one unit becomes. Data and quarantine as Parquet, then the receipt, last."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.schema import (
    EMBEDDING,
    ID,
    IMAGE,
    QUARANTINE_SCHEMA,
    REJECT,
    SCHEMA_VERSION,
    TEXT,
    dataset_schema,
    embedding_type,
)
from pipeline.storage import locations
from pipeline.storage.columns import CONTENT_BYTES
from pipeline.storage.corpus import Unit
from pipeline.storage.locations import StoreError, redact_url
from pipeline.storage.receipts import Receipt, source_of

DATA = "data"
QUARANTINE = "quarantine"
RECEIPTS = "receipts"
UNIT_KEY = "anisoalign.unit"
SCHEMA_KEY = "anisoalign.schema_version"
ROWS_PER_GROUP = 4096
"""Rows of a row group: what a reader of a few rows has to decode, at most."""
_WHOLE_CHUNK = 2**30
"""A page size past any row group's, so that a column chunk of embeddings is one page."""
_READERS = 16


def shard_name(unit_key: str, fingerprint: str) -> str:
    """Return the name (32 hex digits) of a unit's shard; `fingerprint` says what was done to it."""
    named = f"{unit_key}/{fingerprint}".encode()
    return hashlib.blake2b(named, digest_size=16).hexdigest()


def write_unit(
    root: str,
    *,
    unit: Unit,
    fingerprint: str,
    table: pa.Table,
    dtype: str,
    metadata: Mapping[str, str],
    seconds: Mapping[str, float],
    truncated: int = 0,
    norms: Mapping[str, float] | None = None,
) -> Receipt:
    """Write a unit's shard, its quarantine shard if any row is rejected, and then its receipt.

    `table` holds all rows of the unit as `read_unit` gives them, with `embedding` (n, d); columns
    that the unit does not pass through are left out. Rows that a later stage rejected go to
    quarantine with their text or image. Good rows are sorted by id. The bytes depend on the
    content only. A unit without a good row gets a shard without rows.

    Raises:
        ValueError: if `root` cannot be written or `dtype` is neither float16 nor float32.
    """
    assert table.num_rows == unit.rows, f"{table.num_rows} rows for the {unit.rows} of the unit"
    name = shard_name(unit.key, fingerprint)
    good = pc.is_null(table.column(REJECT))
    rejected = table.filter(pc.invert(good))
    rows = _sorted(table.filter(good) if rejected.num_rows else table)
    notes = {**metadata, SCHEMA_KEY: str(SCHEMA_VERSION), UNIT_KEY: unit.key}
    path = f"{DATA}/{name}.parquet"
    data = _data_bytes(_dataset_rows(rows, unit, dtype), notes)
    locations.write_bytes(locations.join_inside(root, path), data)
    quarantine_path, quarantine = None, b""
    if rejected.num_rows:
        quarantine_path = f"{QUARANTINE}/{name}.parquet"
        quarantine = _quarantine_bytes(rejected, notes)
        locations.write_bytes(locations.join_inside(root, quarantine_path), quarantine)
    counts = pc.value_counts(rejected.column(REJECT)).to_pylist()
    receipt = Receipt(
        unit=unit.key,
        fingerprint=fingerprint,
        path=path,
        rows=rows.num_rows,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        quarantined=dict(sorted((one["values"], one["counts"]) for one in counts)),
        quarantine_path=quarantine_path,
        quarantine_rows=rejected.num_rows,
        quarantine_bytes=len(quarantine),
        quarantine_sha256=hashlib.sha256(quarantine).hexdigest() if quarantine else None,
        seconds={stage: round(float(spent), 3) for stage, spent in seconds.items()},
        truncated=truncated,
        source=source_of(unit),
        planned=unit.planned_key,
        norms=dict(norms or {}),
    )
    where = locations.join_inside(root, f"{RECEIPTS}/{name}.json")
    locations.write_bytes(where, receipt.to_json().encode())
    return receipt


def read_shard(root: str, receipt: Receipt, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a shard's rows, all columns or those named.

    Raises:
        ValueError: if it is missing, damaged, or lacks a column.
    """
    url = locations.join_inside(root, receipt.path)
    try:
        data = locations.read_bytes(url)
        parquet = pq.ParquetFile(pa.BufferReader(data))
        if columns is not None:
            missing = [name for name in columns if name not in parquet.schema_arrow.names]
            if missing:
                raise ValueError(f"{redact_url(url)} has no column {locations.listed(missing)}")
        return parquet.read(columns=None if columns is None else list(columns))
    except (FileNotFoundError, pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(f"cannot read the shard {redact_url(url)}: {line}") from error


def stored_embeddings(table: pa.Table) -> npt.NDArray[Any]:
    """Return the embeddings (n, d) of a table in their stored dtype; no copy of a single chunk."""
    kind = table.schema.field(EMBEDDING).type
    parts = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
        for chunk in table.column(EMBEDDING).chunks
    ]
    if len(parts) == 1:
        return parts[0]
    none = np.empty((0, kind.list_size), kind.value_type.to_pandas_dtype())
    return np.concatenate([none, *parts])


def embeddings_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """Return the embeddings (n, d) of a table as float32; no copy if it holds one float32 chunk."""
    assert table.column(EMBEDDING).null_count == 0, "an embedding column has no null rows"
    return stored_embeddings(table).astype(np.float32, copy=False)


def finished(
    root: str, units: Sequence[Unit], fingerprint: str, known: Sequence[Receipt] = ()
) -> dict[str, Receipt]:
    """Return the receipts, by unit key, of the units whose shard and receipt are both there.

    A receipt counts if it parses, is of this unit and fingerprint, accounts for every row of the
    unit, and the files it names have the sizes it names. The folders are listed once; of `known`
    (receipts of the current manifest) no file is read. `fingerprint` must cover all that changes
    a shard's content.

    Raises:
        StoreError: if the store fails.
    """
    sizes = _sizes(root, (DATA, QUARANTINE, RECEIPTS))
    trusted = {receipt.unit: receipt for receipt in known}

    def receipt_of(unit: Unit) -> Receipt | None:
        name = shard_name(unit.key, fingerprint)
        receipt = trusted.get(unit.key)
        if receipt is not None and _is_whole(receipt, unit, fingerprint, sizes):
            return receipt
        if f"{RECEIPTS}/{name}.json" not in sizes or f"{DATA}/{name}.parquet" not in sizes:
            return None
        try:
            data = locations.read_bytes(locations.join_inside(root, f"{RECEIPTS}/{name}.json"))
            receipt = Receipt.from_json(data)
        except StoreError:
            raise  # else all that is written would be written again
        except (ValueError, FileNotFoundError):
            return None
        return receipt if _is_whole(receipt, unit, fingerprint, sizes) else None

    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(units, pool.map(receipt_of, units), strict=True)
        return {unit.key: receipt for unit, receipt in found if receipt is not None}


def missing_files(root: str, files: Mapping[str, int]) -> list[str]:
    """Return the files (sizes by path in `root`) that aren't there with their sizes.

    Their folders are listed, once each.
    """
    sizes = _sizes(root, sorted({path.rsplit("/", 1)[0] for path in files}))
    return [path for path, size in files.items() if sizes.get(path) != size]


def whole(root: str, receipts: Sequence[Receipt]) -> bool:
    """Return whether all files that receipts name are there with their sizes, by a listing."""
    return not missing_files(root, {p: n for one in receipts for p, n in one.files.items()})


def _sizes(root: str, folders: Sequence[str]) -> dict[str, int]:
    return {
        f"{folder}/{entry.name}": entry.size
        for folder in folders
        for entry in locations.list_files(locations.join(root, folder))
    }


def _is_whole(receipt: Receipt, unit: Unit, fingerprint: str, sizes: Mapping[str, int]) -> bool:
    name = shard_name(unit.key, fingerprint)
    quarantined = receipt.quarantine_rows
    path = f"{QUARANTINE}/{name}.parquet" if quarantined else None
    return (
        (receipt.unit, receipt.fingerprint) == (unit.key, fingerprint)
        and (receipt.path, receipt.quarantine_path) == (f"{DATA}/{name}.parquet", path)
        and receipt.rows + quarantined == unit.rows
        and sum(receipt.quarantined.values()) == quarantined
        and all(sizes.get(file) == size for file, size in receipt.files.items())
    )


def _sorted(rows: pa.Table) -> pa.Table:
    """Return rows in order of id."""
    order = pc.sort_indices(rows.column(ID))
    if is_in_order(order):
        return rows  # as many corpora come: embeddings are much to copy
    return rows.take(order)


def is_in_order(places: pa.Array) -> bool:
    """Return whether places (n,) are 0, 1, ... n - 1."""
    found = places.to_numpy()
    return bool((found == np.arange(len(found))).all())


def _dataset_rows(rows: pa.Table, unit: Unit, dtype: str) -> pa.Table:
    """Return good rows in the schema of a dataset shard."""
    embeddings = embeddings_of(rows)
    assert np.isfinite(embeddings).all(), "a good row has an embedding that is not finite"
    dimension = embeddings.shape[1]
    passed = unit.passed_through_schema
    schema = dataset_schema(dimension, dtype, list(passed))
    text = rows.column(TEXT) if TEXT in rows.column_names else pa.nulls(len(rows), pa.string())
    columns = [
        rows.column(ID),
        text,
        pa.FixedSizeListArray.from_arrays(
            pa.array(embeddings.astype(dtype, copy=False).reshape(-1)),
            type=embedding_type(dimension, dtype),
        ),
        *(rows.column(name) for name in passed.names),
    ]
    return pa.table(columns, schema=schema)


def _data_bytes(table: pa.Table, notes: Mapping[str, str]) -> bytes:
    """Return a dataset shard's bytes.

    Float16 stands plain and uncompressed, one page a row group, so that a row's bytes are found by
    arithmetic (`row_groups.py`); zstd would take 8 % off real unit vectors. Float32 is split by
    byte before zstd, which takes a sixth off. Dictionaries and statistics of embeddings would be
    waste.
    """
    single = table.schema.field(EMBEDDING).type.value_type == pa.float32()
    leaf = f"{EMBEDDING}.list.element"
    others = [path for path in _leaves(table.schema) if path not in {leaf, ID}]
    return _parquet_bytes(
        table,
        notes,
        compression={**dict.fromkeys([ID, *others], "zstd"), leaf: "zstd" if single else "none"},
        use_dictionary=others,
        column_encoding={leaf: "BYTE_STREAM_SPLIT" if single else "PLAIN"},
        write_statistics=[ID, *others],
        row_group_size=ROWS_PER_GROUP,
        data_page_size=_WHOLE_CHUNK,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the paths of a schema's leaf columns as Parquet names them."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    found = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [found.column(index).path for index in range(len(found.names))]


def _quarantine_bytes(rejected: pa.Table, notes: Mapping[str, str]) -> bytes:
    """Return a quarantine shard's bytes.

    A row that a later stage rejected has no raw content yet: its text or image stands in.
    """
    there = [name for name in ("content", TEXT, IMAGE) if name in rejected.column_names]
    content = pc.coalesce(*(rejected.column(name).cast(pa.binary()) for name in there))
    table = pa.table(
        [
            rejected.column("row"),
            rejected.column(ID),
            pc.binary_slice(content, 0, CONTENT_BYTES),
            rejected.column(REJECT),
        ],
        schema=QUARANTINE_SCHEMA,
    )
    return _parquet_bytes(table, notes, compression="zstd", use_dictionary=["reason"])


def _parquet_bytes(table: pa.Table, notes: Mapping[str, str], **options: Any) -> bytes:
    sink = io.BytesIO()
    table = table.replace_schema_metadata(dict(sorted(notes.items())))
    pq.write_table(table, sink, **options)
    return sink.getvalue()
