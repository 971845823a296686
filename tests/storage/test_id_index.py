import dataclasses
import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.readers.segments import _Segment
from pipeline.storage import collect, locations, open_manifest, plan_collection, rollback, verify
from pipeline.storage.duplicates import hash_ids
from pipeline.storage.id_index import (
    IndexSegment,
    ShardIds,
    plan_index,
    read_segment,
    read_shard_ids,
    segment_arrays,
    segment_bytes,
    segment_path,
    write_segment,
)
from pipeline.storage.manifest import content_digest
from pipeline.storage.receipts import Receipt
from pipeline.storage.row_groups import DECODE, embedding_groups, plain_embeddings
from tests.readers.samples import (
    DIMENSION,
    embedding_of,
    ids_of,
    publish,
    write_dataset,
    write_shard,
)


class Bytes:
    """A segment's file in memory."""

    def __init__(self, data):
        self.data = data
        self.read_bytes = 0

    def read(self, start, stop):
        return self.data[start:stop]

    def read_each(self, ranges):
        for start, stop in ranges:
            self.read_bytes += stop - start
            yield self.data[start:stop]


def opened(shards):
    data = segment_bytes(shards)
    entry = IndexSegment(path="x", bytes=len(data), sha256="", shards=tuple(s.path for s in shards))
    file = Bytes(data)
    return _Segment(file, entry), file


def shard(path, hashes):
    rows = np.array(hashes, np.uint64).reshape(-1, 2)
    return ShardIds(path, rows, np.array([[0, 100]], np.int64))


HALVES = st.one_of(st.integers(0, 6), st.sampled_from([2**64 - 1, 2**63, 2**32]))
"""Few, so that first halves are equal within fences and across them."""


@given(st.data(), st.integers(1, 4))
def test_each_hash_is_found_and_no_other(data, step):
    hashes = data.draw(st.lists(st.tuples(HALVES, HALVES), unique=True, max_size=40))
    cut = data.draw(st.integers(0, len(hashes)))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pipeline.storage.id_index", "pipeline.readers.segments"):
            patch.setattr(f"{module}.ENTRIES_PER_FENCE", step)
        segment, file = opened([shard("a", hashes[:cut]), shard("b", hashes[cut:])])
        asked = data.draw(st.lists(st.tuples(HALVES, HALVES), max_size=20)) + hashes
        asked.sort()
        places = {one: ((0 << 32) | row) for row, one in enumerate(hashes[:cut])}
        places |= {one: ((1 << 32) | row) for row, one in enumerate(hashes[cut:])}
        found = segment.search(file, np.array(asked, np.uint64).reshape(-1, 2))
    assert found.tolist() == [places.get(one, -1) for one in asked]


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 511, 512, 513, 1024])
def test_borders_of_fences_and_a_short_read(rows):
    hashes = hash_ids([f"id{row}" for row in range(rows)])
    segment, file = opened([ShardIds("a", hashes, np.array([[0, 100]], np.int64))])
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    assert segment.search(file, hashes[order]).tolist() == order.tolist()
    missing = hash_ids([f"none{row}" for row in range(300)])
    missing = missing[np.argsort(missing[:, 0])]
    assert (segment.search(file, missing) == -1).all()
    for place in (0, 255, 256, 257, rows - 1):
        if place < rows:
            file.read_bytes = 0
            one = order[place]
            assert segment.search(file, hashes[one : one + 1]).tolist() == [one]
            # A block, or two for the hash that stands at a fence.
            assert file.read_bytes <= 2 * 256 * 24


def test_an_id_that_stands_twice_is_the_first_shards():
    segment, file = opened([shard("a", [(5, 5), (1, 1)]), shard("b", [(1, 1), (5, 5)])])
    assert segment.search(file, np.array([(1, 1), (5, 5)], np.uint64)).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_segment_says_where_each_row_stands(place, dtype, monkeypatch):
    monkeypatch.setattr("pipeline.storage.shards.ROWS_PER_GROUP", 16)
    receipts = [write_shard(place, number, rows, dtype) for number, rows in enumerate([50, 0, 7])]
    segment = write_segment(place, receipts)
    data = locations.read_bytes(locations.join(place, segment.path))
    assert (segment.bytes, segment.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert segment.path == segment_path(receipts)
    assert write_segment(place, receipts) == segment
    paths, arrays = read_segment(data)
    assert paths == segment.shards == tuple(one.path for one in receipts)
    entries = {(high, low): at for high, low, at in arrays["entries"].tolist()}
    assert list(entries) == sorted(entries)
    for number, rows in enumerate([50, 0, 7]):
        for row, one in enumerate(hash_ids(ids_of(number, rows)).tolist()):
            assert entries[tuple(one)] == (number << 32) | row
    assert arrays["fences"].tolist() == [min(entries)[0]]
    groups = [group for group in arrays["groups"].tolist() if group[0] == 0]
    assert [first for _, first, _ in groups] == [0, 16, 32, 48]
    file = locations.read_bytes(locations.join(place, receipts[0].path))
    for _, first, offset in groups:
        wanted = embedding_of(ids_of(0, 50)[first : first + 1])
        if dtype == "float16":
            assert file[offset : offset + 2 * DIMENSION] == wanted.tobytes()
        else:
            assert offset == DECODE


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False, "data_page_size": 64},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    ],
)
def test_any_other_layout_has_to_be_decoded(tmp_path, options):
    (receipt,) = [write_shard(str(tmp_path), 0, 3000)]
    path = tmp_path / receipt.path
    ours = pq.ParquetFile(path)
    with path.open("rb") as file:
        assert (embedding_groups(file, ours)[:, 1] > 0).all()
        assert np.array_equal(plain_embeddings(file, ours, 0), embedding_of(ids_of(0, 3000)))
    pq.write_table(ours.read(), tmp_path / "other.parquet", **options)
    with (tmp_path / "other.parquet").open("rb") as file:
        other = pq.ParquetFile(file)
        assert embedding_groups(file, other).tolist() == [[0, DECODE]]
        assert plain_embeddings(file, other, 0) is None


def test_a_shard_that_is_not_its_receipts(tmp_path):
    root = str(tmp_path)
    receipt = write_shard(root, 0, 5)
    with pytest.raises(ValueError, match="has 5 rows, its receipt says 6; `anisoalign verify`"):
        read_shard_ids(root, dataclasses.replace(receipt, rows=6))
    (tmp_path / receipt.path).write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot read the ids of the shard"):
        read_shard_ids(root, receipt)
    (tmp_path / receipt.path).unlink()
    with pytest.raises(ValueError, match="cannot read the ids of the shard"):
        write_segment(root, [receipt])


def nights(folder, changes, size):
    """Index night by night; returns for each how many shards were read and segments there are."""
    there, counts = [], []
    receipts = {}
    for night in changes:
        for number, content in night.items():
            if content is None:
                del receipts[number]
            else:
                one = write_shard(str(folder), 0, 1)
                receipts[number] = dataclasses.replace(
                    one, path=f"data/{number:02d}.parquet", sha256=str(content)
                )
        plan = plan_index(list(receipts.values()), there)
        covered = [path for segment in plan.kept for path in segment.shards]
        covered += [one.path for group in plan.missing for one in group]
        assert sorted(covered) == sorted(one.path for one in receipts.values())
        built = [
            IndexSegment(
                path=segment_path(group), bytes=1, sha256="", shards=tuple(r.path for r in group)
            )
            for group in plan.missing
        ]
        there = [*plan.kept, *built]
        assert all(len(segment.shards) <= size for segment in there)
        counts.append((sum(len(group) for group in plan.missing), len(there)))
    return counts


def test_full_segments_are_kept_and_small_ones_do_not_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.id_index.SHARDS_PER_SEGMENT", 4)
    first = dict.fromkeys(range(10), 1)
    small = [{number: 1} for number in range(10, 20)]
    counts = nights(tmp_path, [first, {}, *small], 4)
    assert counts[:2] == [(10, 3), (0, 3)]  # the last has two; an unchanged night reads nothing
    assert [read for read, _ in counts[2:]] == [3, 4, 1, 2, 3, 4, 1, 2, 3, 4]
    assert counts[-1][1] == 5
    # A shard that changed, and one that went: their segments alone are read again.
    assert nights(tmp_path, [first, {0: 2}], 4)[-1] == (4, 3)
    assert nights(tmp_path, [first, {9: None}], 4)[-1] == (1, 3)
    assert nights(tmp_path, [first, {5: None}], 4)[-1] == (5, 3)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([1_000_000] * 9, [4, 4, 1]),
        ([65_537] * 64, [63, 1]),
        ([65_536] * 65, [64, 1]),
        ([5_000_000, 5_000_000, 10], [1, 1, 1]),
        ([10, 5_000_000, 4_194_304, 0, 0], [1, 1, 3]),
    ],
)
def test_segments_are_cut_by_rows_too_and_kept(rows, groups):
    fields = {"unit": "", "fingerprint": "", "bytes": 1, "sha256": ""}
    receipts = [Receipt(path=f"data/{at:03d}", rows=n, **fields) for at, n in enumerate(rows)]
    plan = plan_index(receipts, [])
    assert [len(group) for group in plan.missing] == groups
    there = []
    for group in plan.missing:
        shards = tuple(one.path for one in group)
        there.append(IndexSegment(path=segment_path(group), bytes=1, sha256="", shards=shards))
    assert plan_index(receipts, there).missing == ()
    # One more shard, the first by name.
    new = dataclasses.replace(receipts[0], path="data/+", rows=7, sha256="new")
    again = plan_index([new, *receipts], there)
    for segment, group in zip(there, plan.missing, strict=True):
        if len(group) == 64 or sum(one.rows for one in group) >= 2_097_152:
            assert segment in again.kept


def test_the_index_makes_no_other_content(tmp_path):
    root = str(tmp_path)
    receipts = [write_shard(root, shard, 5) for shard in range(2)]
    old = publish(root, receipts, indexed=False)
    new = publish(root, receipts)
    assert content_digest(old) == content_digest(new)
    assert old.version.split("-")[1] == new.version.split("-")[1]
    assert (old.index, len(new.index)) == (None, 1)
    assert (new.parent, len(new.changes["kept"])) == (old.version, 2)
    assert publish(root, receipts) == new
    assert publish(root, receipts, indexed=False) == new
    assert open_manifest(root) == new
    assert verify(root).problems == verify(root, version=old.version).problems == ()


@pytest.mark.parametrize(
    "value",
    [
        1,
        [1],
        [{"path": "index/x.safetensors"}],
        [{"path": "x", "bytes": -1, "sha256": "", "shards": []}],
        [{"path": "x", "bytes": 1, "sha256": "", "shards": [1]}],
        [{"path": "x", "bytes": 1, "sha256": "", "shards": [], "more": 1}],
    ],
)
def test_a_manifest_with_an_index_that_is_none(tmp_path, value):
    manifest = write_dataset(str(tmp_path), [5])
    edit(tmp_path, manifest, lambda values: values.update(index=value))
    with pytest.raises(ValueError, match="is damaged: not a"):
        open_manifest(str(tmp_path), manifest.version)


def edit(root, manifest, change):
    where = root / "versions" / f"{manifest.version}.json"
    values = json.loads(where.read_text())
    change(values)
    where.write_text(json.dumps(values))
    sha256 = hashlib.sha256(where.read_bytes()).hexdigest()
    pointer = {"version": manifest.version, "sha256": sha256}
    (root / "current.json").write_text(json.dumps(pointer))


def test_paths_that_leave_the_folder(tmp_path):
    manifest = write_dataset(str(tmp_path), [5])
    edit(tmp_path, manifest, lambda values: values["index"][0].update(path="../x.safetensors"))
    with pytest.raises(ValueError, match="refused"):
        open_manifest(str(tmp_path))


def problems(root):
    return {(one.path, one.what) for one in verify(str(root)).problems}


class TestVerification:
    @pytest.fixture(params=["float16", "float32"])
    def dataset(self, request, tmp_path):
        manifest = write_dataset(str(tmp_path), [300, 0, 20], request.param)
        (segment,) = manifest.index
        return tmp_path, manifest, segment

    def test_a_whole_index_has_no_problem(self, dataset):
        root, manifest, segment = dataset
        assert problems(root) == set()
        assert (len(manifest.index), len(segment.shards)) == (1, 3)

    def test_a_file_that_is_missing_short_changed_or_none(self, dataset):
        root, _, segment = dataset
        path = root / segment.path
        data = path.read_bytes()
        path.unlink()
        assert problems(root) == {(segment.path, "missing")}
        for content, what in (
            (data + b"x", f"has {len(data) + 1} bytes, the manifest says {len(data)}"),
            (data[:-1] + b"x", "its sha256 is not the manifest's: its bytes were changed"),
            (b"x" * len(data), "is no segment of an id index: "),
        ):
            path.write_bytes(content)
            found = problems(root)
            assert {name for name, _ in found} == {segment.path}
            assert any(one.startswith(what) for _, one in found), found

    def test_one_that_says_something_else(self, dataset):
        """Its bytes are those that the manifest names, its content is wrong."""
        root, manifest, segment = dataset
        shards = [read_shard_ids(str(root), one) for one in manifest.receipts]
        large = max(shards, key=lambda one: len(one.hashes))
        for change, what in (
            ({"hashes": large.hashes[::-1]}, "the ids and rows"),
            ({"hashes": large.hashes[1:]}, "the ids and rows"),
            ({"groups": large.groups + 1}, "the places of the row groups"),
            ({"path": "data/x.parquet"}, "is of other shards"),
        ):
            wrong = [dataclasses.replace(one, **change) if one is large else one for one in shards]
            data = segment_bytes(wrong)
            (root / segment.path).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            fields = {"bytes": len(data), "sha256": sha256}
            edit(root, manifest, lambda values, f=fields: values["index"][0].update(f))
            found = problems(root)
            assert {name for name, _ in found} == {segment.path}
            assert any(what in one for _, one in found), found

    def test_shards_in_no_segment_or_in_two(self, dataset):
        root, manifest, segment = dataset
        edit(root, manifest, lambda values: values.update(index=[]))
        assert problems(root) == {
            (one.path, "stands in 0 segments of the id index, not in one")
            for one in manifest.receipts
        }
        edit(root, manifest, lambda values: values.update(index=[dict(vars(segment))] * 2))
        assert {what for _, what in problems(root)} == {
            "stands in 2 segments of the id index, not in one"
        }

    def test_a_damaged_shard_is_the_only_problem(self, dataset):
        root, manifest, _ = dataset
        path = manifest.receipts[0].path
        (root / path).write_bytes(b"junk")
        assert {name for name, _ in problems(root)} == {path}


class TestHistory:
    @pytest.fixture
    def versions(self, place):
        receipts = [write_shard(place, number, 20) for number in range(3)]
        return place, [publish(place, receipts), publish(place, receipts[1:])]

    def test_what_kept_versions_name_stays(self, versions):
        root, (first, second) = versions
        assert first.index[0].path != second.index[0].path
        assert plan_collection(root, 2).files == ()
        found = collect(root, 1, "run")
        assert first.index[0].path in found.files
        names = {entry.name for entry in locations.list_files(locations.join(root, "index"))}
        assert names == {second.index[0].path.removeprefix("index/")}
        assert verify(root).problems == ()
        locations.write_bytes(locations.join(root, "index/mine.safetensors"), b"theirs")
        assert plan_collection(root, 1).files == ()

    def test_a_version_whose_index_is_lost_is_not_whole(self, versions):
        root, (first, second) = versions
        locations.remove(locations.join(root, first.index[0].path))
        with pytest.raises(ValueError, match=f"not whole: .*{first.index[0].path}"):
            rollback(root, first.version, "run")
        assert open_manifest(root) == second


def test_arrays_of_nothing():
    arrays = segment_arrays([])
    assert [arrays[name].shape for name in ("entries", "fences", "groups")] == [
        (0, 3),
        (0,),
        (0, 3),
    ]
    segment, file = opened([])
    assert segment.search(file, np.array([(1, 1)], np.uint64)).tolist() == [-1]
