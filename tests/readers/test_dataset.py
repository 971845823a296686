"""The stream of a dataset: every id once an epoch, in an order that is known and can be resumed."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.readers import SubstituteDataset
from pipeline.readers.version import PinnedVersion, shard_error
from pipeline.schema import EMBEDDING, ID, REJECT, TEXT
from pipeline.storage import Receipt, Unit, collect, write_unit
from pipeline.storage.file_facts import schema_text
from pipeline.storage.manifest import open_manifest
from tests.readers.samples import (
    DIMENSION,
    all_ids,
    embedding_of,
    publish,
    write_dataset,
    write_shard,
)
from tests.readers.streams import ROWS, TOTAL, batches, dataset, loader, names
from tests.storage.samples import vectors


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_those_that_were_written(place: str, dtype: str):
    write_dataset(place, ROWS, dtype)
    rows = list(dataset(place))
    assert sorted(names(rows)) == all_ids(ROWS)
    found = torch.stack([row["embedding"] for row in rows])
    assert found.dtype == getattr(torch, dtype)
    assert np.array_equal(found.numpy(), embedding_of(names(rows), dtype))
    assert all(row["text"] == f"caption of {row['id']}" for row in rows)
    assert list(rows[0]) == ["id", "text", "embedding"]


def test_only_the_columns_asked_for(root: str):
    wanted = ["embedding", "conversations", "id"]
    (row, *_) = dataset(root, columns=wanted)
    assert row.keys() == set(wanted)
    assert row["conversations"] == [{"from": "human", "value": f"What is {row['id']}?"}]
    (row, *rest) = dataset(root, columns=["embedding"], dtype=torch.float64)
    assert (row.keys(), row["embedding"].dtype) == ({"embedding"}, torch.float64)
    assert len(rest) == TOTAL - 1
    with pytest.raises(ValueError, match="no column caption; it has id, text, embedding"):
        dataset(root, columns=["id", "caption"])


def test_nothing_else_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a shard of three row groups a rank reads those that it has rows of."""
    monkeypatch.setattr("pipeline.storage.shards.ROWS_PER_GROUP", 10)
    write_dataset(str(tmp_path), [30])
    groups: list[int] = []
    real = pq.ParquetFile.read_row_group

    def recorded(self: Any, group: int, **options: Any) -> Any:
        groups.append(group)
        return real(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    part = dataset(str(tmp_path), rank=1, world_size=3, buffer_size=4, shuffle=False)
    assert len(list(part)) == 10
    assert groups == [1]
    # Windows do not end where row groups do: what two share is kept, not read again.
    groups.clear()
    assert len(list(dataset(str(tmp_path), buffer_size=4, shuffle=False))) == 30
    assert groups == [0, 1, 2]
    # Shuffled, pieces are what row groups are; the one where the epoch begins is read twice.
    groups.clear()
    monkeypatch.setattr("pipeline.readers.order.PIECE_ROWS", 10)
    assert len(list(dataset(str(tmp_path), buffer_size=4))) == 30
    assert sorted(set(groups)) == [0, 1, 2]
    assert len(groups) <= 4


def test_without_shuffle_rows_come_as_they_stand(root: str):
    stored = [
        name
        for receipt in open_manifest(root).receipts
        for name in pq.read_table(f"{root}/{receipt.path}").column("id").to_pylist()
    ]
    assert names(dataset(root, shuffle=False)) == stored


def test_the_order_hangs_on_seed_and_epoch(root: str):
    first = dataset(root)
    orders = [names(first)]
    assert names(first) == orders[0]
    assert names(dataset(root)) == orders[0]
    for epoch in (1, 2):
        first.set_epoch(epoch)
        orders.append(names(first))
    orders.append(names(dataset(root, seed=1)))
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == all_ids(ROWS) for order in orders)
    # Shards are not read in the order of their names, nor rows in that of theirs.
    shards = [[name[-1] for name in order] for order in orders]
    assert len({tuple(dict.fromkeys(one)) for one in shards}) > 1
    assert orders[0][:8] != sorted(orders[0][:8])


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_id_once_over_ranks_and_workers(root: str, world_size: int, workers: int):
    seen: list[str] = []
    sizes = []
    for rank in range(world_size):
        part = dataset(root, rank=rank, world_size=world_size)
        found = [name for one in batches(loader(part, num_workers=workers)) for name in one]
        assert len(found) == len(part)
        sizes.append(len(found))
        seen += found
    assert sorted(seen) == all_ids(ROWS)
    assert max(sizes) - min(sizes) <= 1


def test_more_workers_than_shards_and_than_rows(tmp_path: Path):
    write_dataset(str(tmp_path), [5, 1])
    found = batches(loader(dataset(str(tmp_path)), num_workers=8, batch_size=2))
    assert sorted(name for one in found for name in one) == all_ids([5, 1])


def test_equal_ranks_leave_out_the_last_rows_of_the_order(root: str):
    whole = names(dataset(root, shuffle=False))
    parts = [
        names(dataset(root, shuffle=False, rank=rank, world_size=7, equal_ranks=True))
        for rank in range(7)
    ]
    assert {len(part) for part in parts} == {TOTAL // 7}
    assert [name for part in parts for name in part] == whole[: TOTAL - TOTAL % 7]


def test_no_row_is_left_out_for_ever_and_no_rank_keeps_its_part(tmp_path: Path):
    write_dataset(str(tmp_path), [101])
    seen: set[str] = set()
    firsts: set[tuple[str, ...]] = set()
    parts = [dataset(str(tmp_path), rank=rank, world_size=4, equal_ranks=True) for rank in range(4)]
    for epoch in range(5):
        for part in parts:
            part.set_epoch(epoch)
            seen.update(names(part))
        firsts.add(tuple(sorted(names(parts[0]))))
    assert sorted(seen) == all_ids([101])
    assert len(firsts) == 5


def test_a_shard_larger_than_the_window_is_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.readers.order.PIECE_ROWS", 10)
    write_dataset(str(tmp_path), [1000])
    rows = [int(name[:5]) for name in names(dataset(str(tmp_path), buffer_size=40))]
    assert abs(np.corrcoef(rows, range(1000))[0, 1]) < 0.3


def write_other_shard(root: str, shard: int, **columns: pa.Array) -> Receipt:
    """Write a shard of two rows without conversations, with other columns."""
    table = pa.table(
        {
            ID: [f"{shard}-0", f"{shard}-1"],
            TEXT: pa.nulls(2, pa.string()),
            EMBEDDING: vectors(np.eye(DIMENSION, dtype=np.float32)[:2]),
            **columns,
            REJECT: pa.nulls(2, pa.string()),
        }
    )
    passed = pa.schema([(name, column.type) for name, column in columns.items() if name != TEXT])
    unit = Unit(
        key=f"other{shard}",
        path="p",
        format="jsonl",
        start=0,
        stop=2,
        rows=2,
        digest="0",
        has_ids=True,
        passed_through=schema_text(passed),
    )
    return write_unit(
        root, unit=unit, fingerprint="f", table=table, dtype="float16", metadata={}, seconds={}
    )


def test_a_column_of_another_type_names_its_shard(tmp_path: Path):
    root = str(tmp_path)
    receipts = [
        write_other_shard(root, 0, extra=pa.array([1, 2]), more=pa.array([1, 2])),
        write_other_shard(root, 1, extra=pa.array(["a", "b"])),
    ]
    first, second = publish(root, receipts).receipts
    types = {f"other{number}": name for number, name in enumerate(("int64", "string"))}
    found, wanted = types[second.unit], types[first.unit]
    with pytest.raises(ValueError) as failed:
        list(dataset(root, columns=["id", "extra"]))
    assert str(failed.value) == (
        f"the column extra is of type {found} in the shard {root}/{second.path} and of type "
        f"{wanted} in the first; leave it out of `columns`, or make the corpus's files alike"
    )
    assert len(list(dataset(root, columns=["id", "embedding"]))) == 4
    one = "more" if first.unit == "other0" else "extra"
    if one == "more":
        with pytest.raises(ValueError, match="the column more is missing in the shard"):
            list(dataset(root, columns=["id", "more"]))


def test_no_captions(tmp_path: Path):
    publish(str(tmp_path), [write_other_shard(str(tmp_path), 0)])
    with pytest.raises(ValueError, match=r'its text is null; give columns=\["id", "embedding"\]'):
        dataset(str(tmp_path))
    (batch,) = loader(dataset(str(tmp_path), columns=["id", "embedding"]), num_workers=0)
    assert batch["embedding"].shape == (2, DIMENSION)
    assert [row["text"] for row in dataset(str(tmp_path), columns=["id", "text"])] == [None, None]


def test_rank_from_the_environment(root: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = SubstituteDataset(root)
    assert (found.rank, found.world_size) == (2, 3)
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ValueError, match="no numbers"):
        SubstituteDataset(root)
    for rank, world_size in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="ranks are 0 to"):
            SubstituteDataset(root, rank=rank, world_size=world_size)
    with pytest.raises(ValueError, match="both, or neither"):
        SubstituteDataset(root, rank=1)


@pytest.mark.parametrize(
    ("options", "why"), [({"seed": -1}, "seed is -1"), ({"buffer_size": 0}, "buffer_size 0")]
)
def test_arguments_that_cannot_be(root: str, options: dict[str, int], why: str):
    with pytest.raises(ValueError, match=why):
        dataset(root, **options)
    with pytest.raises(ValueError, match="epoch is -1"):
        dataset(root).set_epoch(-1)


def test_the_length_warns_of_nothing(root: str):
    source = loader(dataset(root, rank=1, world_size=2), batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(source) == -(-len(source.dataset) // 3)
        found = batches(source)
    assert sum(len(one) for one in found) == len(source.dataset)


def test_workers_that_stay_hear_of_the_next_epoch(root: str):
    part = dataset(root)
    source = loader(part, persistent_workers=True)
    first, again = batches(source), batches(source)
    assert first == again
    part.set_epoch(1)
    assert batches(source) != first


def test_a_row_that_is_kept_keeps_little(tmp_path: Path):
    write_dataset(str(tmp_path), [3000])
    row = next(iter(dataset(str(tmp_path), buffer_size=3000)))
    assert row["embedding"].untyped_storage().nbytes() <= 256 * 2 * DIMENSION


def test_what_a_published_version_changes_is_nothing(tmp_path: Path):
    root = str(tmp_path)
    first = [write_shard(root, shard, 20) for shard in range(3)]
    manifest = publish(root, first)
    pinned = dataset(root)
    rows = iter(pinned)
    half = [next(rows)["id"] for _ in range(30)]
    newer = publish(root, [*first[1:], write_shard(root, 5, 20)])
    assert (pinned.version, dataset(root).version) == (manifest.version, newer.version)
    assert sorted([*half, *names(rows)]) == all_ids([20, 20, 20])
    assert sorted(names(pickle.loads(pickle.dumps(pinned)))) == all_ids([20, 20, 20])
    assert sorted(names(dataset(root, version=manifest.version))) == all_ids([20, 20, 20])
    # The old version is collected: rows of shards that the new one shares are still there.
    collect(root, 1, "run")
    with pytest.raises(ValueError, match=f"shard .*{first[0].path}: it is missing"):
        names(pinned)
    with pytest.raises(ValueError, match="has no version"):
        dataset(root, version=manifest.version)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "short", "other"])
def test_a_shard_that_is_not_what_it_was(tmp_path: Path, damage: str, workers: int):
    root = str(tmp_path)
    receipts = [write_shard(root, shard, 20) for shard in range(3)]
    publish(root, receipts)
    part = dataset(root)
    path = tmp_path / receipts[1].path
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[:-10])
    if damage == "other":
        path.write_bytes(b"x" * len(data))
    source = loader(part, num_workers=workers)
    with pytest.raises(ValueError, match=f"cannot read the shard .*{path.name}") as failed:
        batches(source)
    assert "`anisoalign verify` says more" in str(failed.value)


def test_there_is_no_dataset(tmp_path: Path):
    with pytest.raises(ValueError, match="no dataset"):
        SubstituteDataset(tmp_path)
    write_dataset(str(tmp_path), [0])
    with pytest.raises(ValueError, match="has no row"):
        SubstituteDataset(tmp_path)


def test_workers_that_are_spawned(root: str):
    found = batches(loader(dataset(root), multiprocessing_context="spawn"))
    assert found == batches(loader(dataset(root)))


def test_an_object_store_is_read_by_forked_workers(bucket_folder: str):
    write_dataset(bucket_folder, ROWS)
    part = dataset(bucket_folder)
    assert names(part) != []  # this process has used the store before it forks
    found = [name for one in batches(loader(part)) for name in one]
    assert sorted(found) == all_ids(ROWS)


def test_importing_the_room_is_quick():
    script = """
import sys, pipeline.readers
assert not {"torch", "ray", "pyarrow"} & sys.modules.keys()
from pipeline.readers import SubstituteLookup
assert not {"torch", "ray"} & sys.modules.keys()
from pipeline.readers import SubstituteDataset
assert "ray" not in sys.modules
assert not hasattr(pipeline.readers, "Other")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_no_credential_is_shown():
    root = "s3://me:hunter2@bucket/dataset"
    pinned = PinnedVersion(root, "000001-00000000", "substitutes", 8, "float16", (), ())
    assert pinned.shown == "version 000001-00000000 of s3://***@bucket/dataset"
    error = shard_error(root, "data/x.parquet", "it is missing")
    assert str(error) == (
        "cannot read the shard s3://***@bucket/dataset/data/x.parquet: it is missing; "
        "`anisoalign verify` says more"
    )
