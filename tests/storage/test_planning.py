import io
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.storage import Corpus, locations, plan, retrying
from pipeline.storage.line_files import cut_lines, split_lines
from pipeline.storage.locations import StoreError
from pipeline.storage.parquet_files import row_ranges
from tests.storage.samples import text_corpus, unit_norm, write_dataset, write_jsonl, write_parquet

LINES = st.lists(
    st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), min_size=1, max_size=20
)


def keys(corpus, rows_per_shard=10):
    return [unit.key for unit in plan(corpus, rows_per_shard).units]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), rows=st.integers(1, 5), chunk=st.integers(1, 9))
def test_line_slices_are_a_partition(tmp_path_factory, data, rows, chunk):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(data.replace(b"\x00", b"\n"))
    data = path.read_bytes()
    assume(data != b"\xef\xbb\xbf")
    with pytest.MonkeyPatch.context() as patch:
        whole = cut_lines(str(path), rows)
        patch.setattr("pipeline.storage.line_files.CHUNK_BYTES", max(chunk, 3))
        assert cut_lines(str(path), rows) == whole
    body = data.removeprefix(b"\xef\xbb\xbf")
    lines = [line for one in whole for line in split_lines(data[one.byte_start : one.byte_stop])]
    assert lines == split_lines(body)
    assert [one.stop - one.start for one in whole[:-1]] == [rows] * (len(whole) - 1)
    assert whole[-1].stop == len(lines)


@settings(max_examples=60, deadline=None)
@given(lines=LINES, more=LINES, ended=st.booleans(), rows=st.integers(1, 6))
def test_appending_changes_only_the_last_slice(tmp_path_factory, lines, more, ended, rows):
    path = tmp_path_factory.mktemp("append") / "a.txt"
    assume(lines != [b"\xef\xbb\xbf"])
    old = b"\n".join(lines) + (b"\n" if ended or not lines[-1] else b"")
    path.write_bytes(old)
    before = [one.digest for one in cut_lines(str(path), rows)]
    path.write_bytes(old.removesuffix(b"\n") + b"\n" + b"\n".join(more) + b"\n")
    after = [one.digest for one in cut_lines(str(path), rows)]
    whole = len(lines) // rows
    assert after[:whole] == before[:whole]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.npy"])
def test_keys_do_not_depend_on_the_folder(tmp_path, name):
    first = tmp_path / "first"
    first.mkdir()
    if name == "a.txt":
        (first / name).write_text("one\ntwo\nthree\n")
    elif name == "a.jsonl":
        write_jsonl(first / name, [{"id": row, "text": "x"} for row in range(5)])
    elif name == "a.parquet":
        write_parquet(first / name, {"id": ["a", "b", "c"], "text": ["x", "y", "z"]})
    else:
        np.save(first / name, unit_norm(5))
    shutil.copytree(first, tmp_path / "second")
    assert keys(text_corpus(first), 2) == keys(text_corpus(tmp_path / "second" / name), 2)
    one = plan(text_corpus(first), 2)
    assert one.digest == plan(text_corpus(tmp_path / "second"), 2).digest
    assert len(set(keys(text_corpus(first), 2))) == len(one.units) > 1


def test_keys_depend_on_the_columns_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["x"], "other": ["y"], "n": [1]})
    assert keys(text_corpus(path)) != keys(text_corpus(path, text_column="other"))
    assert keys(text_corpus(path)) != keys(text_corpus(path, passed_through=("n",)))


def test_line_endings_and_byte_order_mark_do_not_cut_rows(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (unit,) = plan(text_corpus(tmp_path), 10).units
    assert (unit.rows, unit.byte_start, unit.start, unit.stop) == (2, 3, 0, 2)


@given(groups=st.lists(st.integers(0, 50), max_size=12), rows=st.integers(1, 30))
def test_row_ranges_are_a_partition(groups, rows):
    ranges = row_ranges(groups, rows)
    assert [row for a, b in ranges for row in range(a, b)] == list(range(sum(groups)))
    assert all(0 < b - a <= rows for a, b in ranges)


def test_row_groups_are_kept_whole_merged_or_split():
    assert row_ranges([10, 10, 10, 10], 20) == [(0, 20), (20, 40)]
    assert row_ranges([6, 6, 6], 10) == [(0, 6), (6, 12), (12, 18)]
    assert row_ranges([25], 10) == [(0, 10), (10, 20), (20, 25)]


def test_a_slice_twice_is_kept_once(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("one\ntwo")
    (tmp_path / "c.txt").write_text("three\n")
    planned = plan(text_corpus(tmp_path), 10)
    assert [unit.rows for unit in planned.units] == [2, 1]
    assert [unit.path for unit in planned.duplicate_units] == [str(tmp_path / "b.txt")]
    assert planned.rows == 3


def test_ids_are_derived_only_if_no_row_has_one(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    assert not plan(text_corpus(tmp_path), 10).has_ids
    write_jsonl(tmp_path / "b.jsonl", [{"text": "z"}, {"text": "y", "id": "1"}])
    planned = plan(text_corpus(tmp_path), 10)
    assert planned.has_ids
    assert all(unit.has_ids for unit in planned.units)


def test_a_dataset_is_planned_by_its_receipts(tmp_path):
    _, receipts = write_dataset(str(tmp_path / "out"), tmp_path / "in")
    planned = plan(text_corpus(tmp_path / "out"), 5)
    assert sorted(unit.digest for unit in planned.units) == sorted(one.sha256 for one in receipts)
    assert (planned.rows, planned.dimension, planned.has_ids) == (27, 8, True)
    (tmp_path / "moved").mkdir()
    shutil.copytree(tmp_path / "out", tmp_path / "moved" / "out")
    assert planned.digest == plan(text_corpus(tmp_path / "moved" / "out"), 7).digest


def test_ids_of_arrays(tmp_path):
    np.save(tmp_path / "a.npy", unit_norm(5))
    bare = plan(text_corpus(tmp_path / "a.npy"), 2)
    assert (bare.has_ids, bare.dimension) == (False, 8)
    (tmp_path / "a.ids.txt").write_text("a\nb\nc\nd\ne")
    named = plan(text_corpus(tmp_path), 2)
    assert named.has_ids
    assert named.digest != bare.digest
    (tmp_path / "a.ids.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(
        ValueError, match=r"a\.ids\.txt does not have one id for each of the 5 rows"
    ):
        plan(text_corpus(tmp_path), 2)
    np.save(tmp_path / "other.npy", np.array(list("abcde")))
    other = text_corpus(tmp_path / "a.npy", ids_path=str(tmp_path / "other.npy"))
    assert plan(other, 2).has_ids
    np.save(tmp_path / "other.npy", np.arange(5.0))
    with pytest.raises(ValueError, match="1-d array of strings or integers"):
        plan(other, 2)
    with pytest.raises(ValueError, match="no ids file"):
        plan(text_corpus(tmp_path / "a.npy", ids_path=str(tmp_path / "none.txt")), 2)
    with pytest.raises(ValueError, match=r"one \.npy, \.npz or \.safetensors"):
        plan(text_corpus(tmp_path, ids_path=str(tmp_path / "a.ids.txt")), 2)


def test_empty_and_damaged_files_fail_by_name_or_are_skipped(tmp_path):
    (tmp_path / "good.txt").write_text("x\n")
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(ValueError, match=r"none\.txt is empty"):
        plan(text_corpus(tmp_path), 10)
    seen = []
    planned = plan(text_corpus(tmp_path), 10, "skip", lambda done, of: seen.append((done, of)))
    assert [one.path for one in planned.skipped_files] == [str(tmp_path / "none.txt")]
    assert "empty" in planned.skipped_files[0].why
    assert seen == [(1, 2), (2, 2)]
    (tmp_path / "good.txt").unlink()
    with pytest.raises(ValueError, match=r"no file of .* can be read"):
        plan(text_corpus(tmp_path), 10, "skip")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.npy"])
def test_an_empty_file_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=name) as caught:
        plan(text_corpus(tmp_path / name), 10)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_rows_or_cut_short(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    with pytest.raises(ValueError, match="has no row"):
        plan(text_corpus(path), 10)
    write_parquet(tmp_path / "a.parquet", {"text": ["x"] * 100})
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        plan(text_corpus(path), 10)


def test_missing_columns_name_those_that_are_there(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"caption": ["x"], "n": [1]})
    for corpus in (
        text_corpus(path),
        text_corpus(path, text_column="caption", passed_through=("more",)),
        text_corpus(path, text_column="caption", id_column="key"),
        text_corpus(path, embedding_column="e"),
        Corpus(path=path, modality="image"),
    ):
        with pytest.raises(ValueError, match=r"a\.parquet has no column .*; it has caption, n"):
            plan(corpus, 10)
    write_jsonl(tmp_path / "a.jsonl", [{"caption": "x"}])
    for corpus in (
        text_corpus(tmp_path / "a.jsonl"),
        text_corpus(tmp_path / "a.jsonl", text_column="caption", passed_through=("more",)),
    ):
        with pytest.raises(ValueError, match=r"a\.jsonl has no column .*; it has caption"):
            plan(corpus, 10)


def test_columns_of_the_wrong_type(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", {"text": [1], "id": [1.5], "e": [["x"]], "image": ["x"]}
    )
    with pytest.raises(ValueError, match=r"'id' .* is double, not strings or integers"):
        plan(text_corpus(path), 10)
    with pytest.raises(ValueError, match="'id'"):
        plan(text_corpus(path, embedding_column="e"), 10)
    path = write_parquet(tmp_path / "b.parquet", {"text": [1], "e": [["x"]], "image": ["x"]})
    with pytest.raises(ValueError, match=r"'text' .* is int64, not text"):
        plan(text_corpus(path), 10)
    with pytest.raises(ValueError, match=r"'image' .* is string, not image bytes"):
        plan(Corpus(path=path, modality="image"), 10)
    path = write_parquet(tmp_path / "c.parquet", {"e": [["x"]], "i": [[1]], "none": [[None]]})
    for column in ("e", "i", "none"):
        with pytest.raises(ValueError, match=rf"'{column}' .* is not a list of floats"):
            plan(text_corpus(path, embedding_column=column), 10)
    write_jsonl(tmp_path / "a.jsonl", [{"e": 1}])
    with pytest.raises(ValueError, match=r"'e' .* is not a list of floats"):
        plan(text_corpus(tmp_path / "a.jsonl", embedding_column="e"), 10)
    path = write_parquet(tmp_path / "d.parquet", {"e": pa.array([None], pa.list_(pa.float32()))})
    with pytest.raises(ValueError, match="no embedding in its first rows"):
        plan(text_corpus(path, embedding_column="e"), 10)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "2-d array"),
        (np.zeros((2, 2), int), "2-d array"),
        (np.zeros((0, 4), np.float32), "no row"),
        (np.asfortranarray(np.ones((3, 2))), "Fortran"),
    ],
)
def test_arrays_that_are_no_embeddings(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy .*{message}"):
        plan(text_corpus(tmp_path), 10)


def test_object_arrays_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        plan(text_corpus(tmp_path), 10)


def test_an_array_cut_short_and_arrays_that_differ(tmp_path):
    np.save(tmp_path / "a.npy", unit_norm(5))
    np.save(tmp_path / "b.npy", unit_norm(5, 4))
    with pytest.raises(ValueError, match=r"b\.npy has 4-dimensional .*a\.npy 8-dimensional"):
        plan(text_corpus(tmp_path), 10)
    (tmp_path / "b.npy").unlink()
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-4])
    with pytest.raises(ValueError, match="cut short"):
        plan(text_corpus(tmp_path), 10)


def test_parquet_files_that_name_rows_and_others_that_do_not(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["x"], "id": ["1"]})
    write_parquet(tmp_path / "b.parquet", {"text": ["y"]})
    with pytest.raises(ValueError, match=r"b\.parquet does not name its rows"):
        plan(text_corpus(tmp_path), 10)


def test_formats_that_cannot_hold_what_is_asked(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    np.save(tmp_path / "a.npy", unit_norm(2))
    for name, fields, message in (
        ("a.txt", {"modality": "image"}, "is text; it holds no images"),
        ("a.txt", {"modality": "text", "embedding_column": "e"}, "is text; it holds no embed"),
        ("a.jsonl", {"modality": "image"}, "is jsonl; it holds no images"),
        ("a.npy", {"modality": "text", "passed_through": ("x",)}, "no columns"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(Corpus(path=str(tmp_path / name), **fields), 10)
    with pytest.raises(ValueError, match="at least 1"):
        plan(text_corpus(tmp_path / "a.txt"), 0)


def test_dimension_is_the_width_of_the_first_embedding(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"e": [None, [1.0, 2.0, 3.0], [1.0]]})
    assert plan(text_corpus(path, embedding_column="e"), 10).dimension == 3
    (tmp_path / "a.jsonl").write_text("junk\n" + json.dumps({"e": [1, 2]}) + "\n")
    assert plan(text_corpus(tmp_path / "a.jsonl", embedding_column="e"), 10).dimension == 2


def test_a_store_that_fails_is_never_skipped(bucket_folder, object_store, monkeypatch):
    object_store.proxy.share = 0
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setattr(retrying, "TRIES", 1)
    for name in ("a", "b"):
        sink = io.BytesIO()
        pq.write_table(pa.table({"text": [name]}), sink)
        locations.write_bytes(f"{bucket_folder}/{name}.parquet", sink.getvalue())
    locations.write_bytes(f"{bucket_folder}/c.parquet", b"damaged")
    corpus = text_corpus(bucket_folder)
    for fault in ("slow down", "reset before", "403 AccessDenied"):
        object_store.proxy.fail_next(fault, 20, containing="b.parquet")
        with pytest.raises(StoreError, match=r"cannot read .*b\.parquet"):
            plan(corpus, 10, "skip")
        object_store.proxy._planned.clear()
    planned = plan(corpus, 10, "skip")
    assert [one.path for one in planned.skipped_files] == [f"{bucket_folder}/c.parquet"]
    assert planned.rows == 2


def test_a_unit_knows_its_file_and_its_key_does_not(tmp_path):
    cache = str(tmp_path / "cache.json")
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"]})
    planned = [plan(text_corpus(path), 1), plan(text_corpus(tmp_path), 1, cache=cache)]
    planned += [plan(text_corpus(tmp_path), 1, cache=cache)]
    assert planned[0].units == planned[1].units == planned[2].units
    assert all(unit.identity for unit in planned[0].units)
    os.utime(path, (1, 1))
    again = plan(text_corpus(tmp_path), 1, cache=cache)
    assert [unit.key for unit in again.units] == [unit.key for unit in planned[0].units]
    assert again.units[0].identity != planned[0].units[0].identity
