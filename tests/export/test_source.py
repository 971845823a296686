"""What is exported: shards as they are stored, columns as JSON has them."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.export.source import Shard, columns_of, open_source, read_shard
from pipeline.schema import EMBEDDING
from pipeline.storage import open_manifest
from tests.export.samples import source_rows
from tests.storage.samples import unit_norm, vectors


def shard(table: pa.Table, **options: object) -> Shard:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return Shard("here", sink.getvalue())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embeddings_of_several_row_groups(dtype):
    values = unit_norm(10).astype(dtype)
    table = pa.table({"id": [f"{row}" for row in range(10)], EMBEDDING: vectors(values, dtype)})
    found = shard(table, row_group_size=3)
    assert found.embeddings().dtype == values.dtype
    assert np.array_equal(found.embeddings(), values)
    assert found.ids() == [f"{row}" for row in range(10)]
    assert found.rows == 10


def test_a_source_is_in_the_order_of_its_shards(dataset):
    source = open_source(dataset)
    assert [one.path for one in source.receipts] == sorted(one.path for one in source.receipts)
    columns = columns_of(source.schema)
    assert [name for name, _ in columns] == ["id", "text", EMBEDDING]
    assert "float" in columns[2][1]
    shards = [read_shard(dataset, one, columns) for one in source.receipts]
    wanted = source_rows(dataset)
    assert [one for found in shards for one in found.ids()] == [row["id"] for row in wanted]
    assert [one for found in shards for one in found.texts()] == [row["text"] for row in wanted]


def test_maps_are_lists_of_pairs():
    kind = pa.map_(pa.string(), pa.float64())
    table = pa.table({"facts": pa.array([[("a", 1.5)], None, []], kind)})
    assert shard(table).values("facts") == [[["a", 1.5]], None, []]


def test_half_floats_are_numbers():
    table = pa.table({"score": pa.array(np.array([0.5, np.nan], np.float16))})
    assert shard(table).values("score") == [0.5, None]


def test_a_version_is_pinned_by_name(dataset):
    version = open_manifest(dataset).version
    assert open_source(dataset, version) == open_source(dataset)
