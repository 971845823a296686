"""Embeddings by id: those that were written, for every id, and for no other."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, Dataset

from pipeline.readers import SubstituteLookup
from pipeline.readers.lookup import _DECODED_BYTES
from pipeline.readers.ranges import RangeReader, RemoteFile
from pipeline.storage import collect, locations
from pipeline.storage.id_index import segment_layout
from pipeline.storage.manifest import open_manifest
from tests.readers.samples import (
    DIMENSION,
    all_ids,
    embedding_of,
    publish,
    write_dataset,
    write_shard,
)

ROWS = [600, 0, 7, 1300, 1]


@pytest.fixture(scope="module", params=["float16", "float32"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, dtype: str) -> str:
    path = str(tmp_path_factory.mktemp("dataset"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.storage.shards.ROWS_PER_GROUP", 100)
        write_dataset(path, ROWS, dtype)
    return path


@pytest.fixture
def half(tmp_path: Path) -> str:
    """Return a dataset of three shards of 50 rows of float16."""
    write_dataset(str(tmp_path), [50, 50, 50])
    return str(tmp_path)


def shuffled(rows: list[int], seed: int = 0) -> list[str]:
    ids = all_ids(rows)
    random.Random(seed).shuffle(ids)
    return ids


def test_every_id_in_any_order_and_repeated(root: str, dtype: str):
    lookup = SubstituteLookup(root)
    ids = shuffled(ROWS)
    found = lookup.lookup(ids)
    assert (found.dtype, found.shape) == (dtype, (sum(ROWS), DIMENSION))
    assert np.array_equal(found, embedding_of(ids, dtype))
    for chosen in (ids[:1], ids[5:8] * 3, sorted(ids)[-4:]):
        assert np.array_equal(lookup.lookup(chosen), embedding_of(chosen, dtype))
    assert lookup.lookup([]).shape == (0, DIMENSION)
    assert (len(lookup), lookup.dimension) == (sum(ROWS), DIMENSION)


def test_float16_is_read_without_decoding(half: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert np.array_equal(
        SubstituteLookup(half).lookup(shuffled([50] * 3)), embedding_of(shuffled([50] * 3))
    )


def test_what_has_to_be_decoded_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.storage.shards.ROWS_PER_GROUP", 10)
    monkeypatch.setattr("pipeline.readers.lookup._DECODED_BYTES", 2 * 10 * DIMENSION * 4)
    write_dataset(str(tmp_path), [30, 20], "float32")
    lookup = SubstituteLookup(tmp_path)
    groups: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **options: groups.append(group) or real(self, group, **options),
    )
    ids = shuffled([30, 20])
    assert np.array_equal(lookup.lookup(ids), embedding_of(ids, "float32"))
    assert len(groups) == 5
    lookup.lookup(["00019-é1", "00010-é1"])  # the last that was decoded, of the shard read last
    lookup.lookup(["00029-é0", "00021-é0"])
    assert len(groups) <= 7
    assert sum(one.nbytes for one in lookup._decoded.values()) <= 2 * 10 * DIMENSION * 4
    assert _DECODED_BYTES > 2**20


def test_unknown_ids(root: str):
    lookup = SubstituteLookup(root)
    known = all_ids(ROWS)
    near = [known[0] + " ", known[0][:-1], "", "00000-é1", "99999-é0", known[-1] + "é"]
    assert not lookup.contains(near).any()
    assert lookup.contains([known[3], "no", known[9]]).tolist() == [True, False, True]
    assert lookup.contains(known).all()
    with pytest.raises(ValueError) as failed:
        lookup.lookup([*known[:20], *near, *near])
    message = str(failed.value)
    assert message.startswith(f"6 of the ids asked for are not in version {lookup.version} of ")
    assert message.endswith("'', '00000-é1', '99999-é0' and others")
    with pytest.raises(ValueError, match=r"1 of the ids .*: 'no'$"):
        lookup.lookup([known[0], "no"])


def test_ids_that_are_none(root: str):
    lookup = SubstituteLookup(root)
    with pytest.raises(ValueError, match="give a list of ids"):
        lookup.lookup("00001-é0")
    with pytest.raises(ValueError, match="ids holds 17, which is no text"):
        lookup.contains(["x", 17])  # type: ignore[list-item]


def test_an_id_in_two_shards_is_always_the_first(tmp_path: Path):
    root = str(tmp_path)
    receipts = [write_shard(root, shard, 5) for shard in range(2)]
    again = write_shard(str(tmp_path / "other"), 0, 7)
    (tmp_path / "other" / again.path).rename(tmp_path / "data" / f"{'f' * 32}.parquet")
    copy = dataclasses.replace(again, unit="copy", path=f"data/{'f' * 32}.parquet")
    publish(root, [*receipts, copy])
    ids = shuffled([7, 5])
    assert np.array_equal(SubstituteLookup(root).lookup(ids), embedding_of(ids))


def test_on_an_object_store(bucket_folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.readers.ranges._GAP_BYTES", 500)
    write_dataset(bucket_folder, [300, 500])
    lookup = SubstituteLookup(bucket_folder)
    ids = shuffled([300, 500])[:200]
    assert np.array_equal(lookup.lookup(ids), embedding_of(ids))
    assert lookup.contains(["no", ids[0]]).tolist() == [False, True]
    write_dataset(f"{bucket_folder}/single", [30], "float32")
    ids = shuffled([30])
    found = SubstituteLookup(f"{bucket_folder}/single").lookup(ids)
    assert np.array_equal(found, embedding_of(ids, "float32"))


@pytest.mark.parametrize("gap", [0, 10, 1000])
@pytest.mark.parametrize("longest", [1, 64, 10**6])
def test_near_ranges_share_a_request(
    bucket_folder: str, monkeypatch: pytest.MonkeyPatch, gap: int, longest: int
):
    monkeypatch.setattr("pipeline.readers.ranges._GAP_BYTES", gap)
    monkeypatch.setattr("pipeline.readers.ranges._LONGEST_BYTES", longest)
    data = bytes(np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8))
    locations.write_bytes(f"{bucket_folder}/file", data)
    file = RangeReader(bucket_folder, 1).file("file", 2000)
    assert isinstance(file, RemoteFile)
    starts = [0, 5, 5, 40, 300, 301, 1900]
    ranges = [(start, start + 20) for start in starts]
    requests: list[int] = []
    real = locations.read_bytes
    monkeypatch.setattr(
        locations, "read_bytes", lambda *given: requests.append(given[1]) or real(*given)
    )
    assert list(file.read_each(ranges)) == [data[start:stop] for start, stop in ranges]
    assert list(file.read_each([])) == []
    wanted = {(1000, 10**6): 2, (10, 10**6): 4, (0, 1): 7}
    assert len(requests) == wanted.get((gap, longest), len(requests))


class Captions(Dataset[Any]):
    """A user's own dataset, map-style."""

    def __init__(self, lookup: SubstituteLookup, ids: list[str]) -> None:
        self.lookup, self.ids = lookup, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Any:
        return self.lookup.lookup([self.ids[place]])[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_the_workers_of_a_loader(half: str, context: str):
    lookup = SubstituteLookup(half)
    ids = shuffled([50] * 3)
    lookup.lookup(ids)  # files are open before it forks
    loader = DataLoader(
        Captions(lookup, ids), batch_size=32, num_workers=2, multiprocessing_context=context
    )
    found = np.concatenate([batch.numpy() for batch in loader])
    assert np.array_equal(found, embedding_of(ids))
    assert np.array_equal(lookup.lookup(ids), embedding_of(ids))


def looked_up(lookup: SubstituteLookup, ids: list[str]) -> bytes:
    return lookup.lookup(ids).tobytes()


def test_a_forked_process_reads_an_object_store(bucket_folder: str):
    write_dataset(bucket_folder, [40])
    lookup, ids = SubstituteLookup(bucket_folder), shuffled([40])
    lookup.lookup(ids)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(looked_up, (lookup, ids)) == embedding_of(ids).tobytes()


def test_pickled_it_is_small_and_the_same(half: str):
    lookup = SubstituteLookup(half)
    ids = shuffled([50] * 3)
    lookup.lookup(ids)
    data = pickle.dumps(lookup)
    assert len(data) < 2000
    assert np.array_equal(pickle.loads(data).lookup(ids), embedding_of(ids))


def test_files_are_open_in_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.readers.lookup._OPEN_SHARDS", 2)
    monkeypatch.setattr("pipeline.readers.segments._OPEN_SEGMENTS", 1)
    headers: list[str] = []
    monkeypatch.setattr(
        "pipeline.readers.segments.segment_layout",
        lambda *given: headers.append("read") or segment_layout(*given),
    )
    monkeypatch.setattr("pipeline.storage.id_index.SHARDS_PER_SEGMENT", 2)
    rows = [30, 20, 10, 40, 5]
    manifest = write_dataset(str(tmp_path), rows)
    assert len(manifest.index or ()) == 3
    lookup = SubstituteLookup(tmp_path)
    for seed in range(3):
        ids = shuffled(rows, seed)
        assert np.array_equal(lookup.lookup(ids), embedding_of(ids))
        assert not lookup.contains(["x"]).any()
        assert len(lookup._files._files) == 2
        assert len(lookup._index._files._files) == 1
    assert len(headers) == 3  # what is known of a segment stays when its file is closed


def test_a_version_stays_until_it_is_collected(tmp_path: Path):
    root = str(tmp_path)
    receipts = [write_shard(root, shard, 20) for shard in range(3)]
    publish(root, receipts)
    lookup = SubstituteLookup(root)
    newer = publish(root, receipts[1:])
    assert lookup.version != newer.version
    ids = all_ids([20, 20, 20])
    assert lookup.contains(ids).all()
    assert SubstituteLookup(root).contains(ids).sum() == 40
    collect(root, 1, "run")
    fresh = pickle.loads(pickle.dumps(lookup))
    with pytest.raises(ValueError, match=r"cannot read the id index .*: it is missing; .*verify"):
        fresh.lookup(ids)
    # With its index open it still finds ids, and says which shard is gone.
    with pytest.raises(ValueError, match=f"shard .*{receipts[0].path}: it is missing"):
        lookup.lookup(ids)


@pytest.mark.parametrize("damage", ["missing", "short", "longer"])
def test_a_shard_that_is_not_what_it_was(tmp_path: Path, damage: str, dtype: str):
    root = str(tmp_path)
    receipts = [write_shard(root, shard, 20, dtype) for shard in range(2)]
    publish(root, receipts, dtype=dtype)
    path = tmp_path / receipts[1].path
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-3] if damage == "short" else data + b"x")
    lookup = SubstituteLookup(root)
    assert lookup.contains(all_ids([20, 20])).all()
    with pytest.raises(ValueError, match=f"cannot read the shard .*{path.name}: it ") as failed:
        lookup.lookup(all_ids([20, 20]))
    assert "`anisoalign verify` says more" in str(failed.value)


@pytest.mark.parametrize("damage", ["short", "header", "other shards", "format"])
def test_an_index_that_is_not_what_it_was(half: str, damage: str):
    manifest = open_manifest(half)
    (segment,) = manifest.index or ()
    path = Path(half) / segment.path
    data = path.read_bytes()
    changed = {
        "short": data[:-1],
        "header": bytes(100) + data[100:],
        "other shards": data.replace(segment.shards[0].encode(), b"x" * len(segment.shards[0])),
        "format": data.replace(b'\\"format\\": 1', b'\\"format\\": 9'),
    }[damage]
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f"cannot read the id index .*{path.name}: "):
        SubstituteLookup(half).contains(["x"])


def test_an_entry_that_changed_gives_no_other_row(half: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.readers.ranges._HASHED_AT_ONCE", 100)
    ids = shuffled([50] * 3)
    (segment,) = open_manifest(half).index or ()
    path = Path(half) / segment.path
    data = bytearray(path.read_bytes())
    first, _, _ = segment_layout(lambda start, stop: bytes(data[start:stop]), len(data)).arrays[
        "entries"
    ]
    assert np.array_equal(SubstituteLookup(half).lookup(ids), embedding_of(ids))
    data[first + 16] ^= 1  # the row of the first entry
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"index .*{path.name}: its bytes are not those that were"):
        SubstituteLookup(half).lookup(ids)


def test_a_version_without_index_says_what_to_do(tmp_path: Path):
    manifest = write_dataset(str(tmp_path / "old"), [5], indexed=False)
    assert manifest.index is None
    # As an earlier release wrote it: without the field.
    where = tmp_path / "old" / "versions" / f"{manifest.version}.json"
    value = json.loads(where.read_text())
    del value["index"]
    where.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"has no id index: .*`anisoalign nightly`.* once more"):
        SubstituteLookup(tmp_path / "old", manifest.version)
    write_dataset(str(tmp_path / "texts"), [5], indexed=False, kind="text-embeddings")
    with pytest.raises(ValueError, match="holds text-embeddings; only datasets of substitutes"):
        SubstituteLookup(tmp_path / "texts")


def test_shards_of_an_earlier_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compressed and in pages of a megabyte, all rows one row group: read by decoding."""

    def older(table: Any, notes: Any) -> bytes:
        from pipeline.storage.shards import _parquet_bytes

        return _parquet_bytes(table, notes, compression="zstd", use_dictionary=["text"])

    root = str(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.shards._data_bytes", older)
        receipts = [write_shard(root, shard, 300) for shard in range(2)]
    receipts.append(write_shard(root, 2, 40))
    publish(root, receipts)
    ids = shuffled([300, 300, 40])
    assert np.array_equal(SubstituteLookup(root).lookup(ids), embedding_of(ids))
