import pickle
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import Duplicates, SharedHashes, plan, read_unit, row_hashes
from pipeline.storage.duplicates import hash_ids
from tests.storage.samples import reasons, text_corpus, write_jsonl


@given(st.lists(st.sets(st.sampled_from("abcdefgh")).map(sorted), max_size=6))
def test_every_id_is_kept_once_by_its_first_unit(units):
    hashes = [(f"unit-{index}", hash_ids(ids)) for index, ids in enumerate(units)]
    found = pickle.loads(pickle.dumps(SharedHashes.from_units(hashes)))
    kept = {}
    for (key, own), ids in zip(hashes, units, strict=True):
        for one, rejected in zip(ids, found.rejected(key, own), strict=True):
            if not rejected:
                assert one not in kept
                kept[one] = key
            else:
                assert one in kept
    assert set(kept) == {one for ids in units for one in ids}
    assert len(found) == sum(
        sum(one in ids for ids in units) > 1 for one in {one for ids in units for one in ids}
    )


def test_hashes_with_the_same_first_half():
    rows = np.array([[1, 1], [1, 2], [1, 3], [5, 1]], dtype=np.uint64)
    found = SharedHashes.from_units([("a", rows[[0, 1, 3]]), ("b", rows[[2, 1, 3]])])
    assert len(found) == 2
    assert found.rejected("b", rows).tolist() == [False, True, False, True]
    assert found.rejected("a", rows).tolist() == [False] * 4
    assert found.rejected("c", np.array([[9, 9]], dtype=np.uint64)).tolist() == [False]


def test_across_units(tmp_path):
    records = [{"id": one, "text": text} for one, text in zip("abcad", "vwxyz", strict=True)]
    records.append({"id": "c", "text": " "})
    corpus = text_corpus(write_jsonl(tmp_path / "a.jsonl", records))
    units = plan(corpus, 3).units
    tables = [read_unit(corpus, unit) for unit in units]
    assert [reasons(table) for table in tables] == [[None] * 3, [None, None, "empty"]]
    found = Duplicates.from_units(
        [(unit.key, row_hashes(table)) for unit, table in zip(units, tables, strict=True)]
    )
    assert len(found) == 1
    again = [read_unit(corpus, unit, duplicates=found) for unit in units]
    assert [reasons(table) for table in again] == [[None] * 3, ["duplicate_id", None, "empty"]]
    assert again[1].column("content")[0].as_py() == b'{"id": "a", "text": "y"}'


def test_no_duplicates_are_small():
    found = SharedHashes.from_units([("a", hash_ids(["1", "2"])), ("b", hash_ids(["3"]))])
    assert len(found) == 0
    assert found.rejected("a", hash_ids(["1"])).tolist() == [False]
    assert len(SharedHashes.from_units([])) == 0


def in_one_go(units):
    """The definition: all hashes sorted at once, the first unit of each that several have."""
    every = np.concatenate([np.empty((0, 2), np.uint64), *(hashes for _, hashes in units)])
    owners = np.repeat(np.arange(len(units)), [len(hashes) for _, hashes in units])
    order = np.lexsort((owners, every[:, 1], every[:, 0]))
    every, owners = every[order], owners[order]
    same = (every[1:] == every[:-1]).all(axis=1)
    kept = np.concatenate([[True], ~same])[: len(every)]
    kept &= np.concatenate([same, [False]])[: len(every)]
    used, keepers = np.unique(owners[kept], return_inverse=True)
    return every[kept], keepers, tuple(units[index][0] for index in used)


NUMBERS = st.sampled_from([0, 1, 2**59, 2**60 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1])


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=9), max_size=5))
def test_parts_together_are_the_whole(units):
    named = [
        (f"unit-{index}", np.array(sorted(set(rows)), dtype=np.uint64).reshape(-1, 2))
        for index, rows in enumerate(units)
    ]
    hashes, keepers, keys = in_one_go(named)
    found = SharedHashes.from_units(named)
    assert found.hashes.dtype == hashes.dtype == np.uint64
    assert found.hashes.tolist() == hashes.tolist()
    assert found.keepers.dtype == np.int64
    assert found.keepers.tolist() == keepers.tolist()
    assert found.unit_keys == keys


def test_finding_takes_less_room_than_the_hashes_themselves():
    draw = np.random.default_rng(0)
    units = [
        (str(index), draw.integers(0, 2**64, (20_000, 2), dtype=np.uint64)) for index in range(20)
    ]
    units.append(("again", units[3][1][:100]))
    tracemalloc.start()
    found = SharedHashes.from_units(units)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 100
    assert peak < sum(hashes.nbytes for _, hashes in units) / 2


def test_captions_once_alone(tmp_path):
    captions = ["A  cat", "a cat", "\uff21 CAT", "a dog", "A DOG "]
    captions += ["b", "a cat.", "Stra\u00dfe", "STRASSE"]
    records = [{"id": str(row), "text": text} for row, text in enumerate(captions)]
    write_jsonl(tmp_path / "a.jsonl", records)
    for rows_per_shard in (1, 2, 4, 100):
        corpus = text_corpus(tmp_path, unique_texts=True)
        units = plan(corpus, rows_per_shard).units
        hashes = [(one.key, row_hashes(read_unit(corpus, one), texts=True)) for one in units]
        found = Duplicates.from_units(hashes)
        tables = [read_unit(corpus, unit, duplicates=found) for unit in units]
        again, kept = "duplicate_text", None
        expected = [kept, again, again, kept, again, kept, kept, kept, again]
        assert [reason for table in tables for reason in reasons(table)] == expected
    assert reasons(read_unit(text_corpus(tmp_path), plan(text_corpus(tmp_path), 9).units[0])) == [
        None
    ] * len(captions)


def test_a_row_that_loses_its_id_keeps_no_caption(tmp_path):
    for name, rows in (("a", [("1", "x")]), ("b", [("1", "y")]), ("c", [("2", "y")])):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": one, "text": text} for one, text in rows])
    corpus = text_corpus(tmp_path, unique_texts=True)
    units = plan(corpus, 9).units
    hashes = [(one.key, row_hashes(read_unit(corpus, one), texts=True)) for one in units]
    found = Duplicates.from_units(hashes)
    tables = [read_unit(corpus, unit, duplicates=found) for unit in units]
    assert [reasons(table)[0] for table in tables] == [None, "duplicate_id", None]


def test_other_rules_make_other_units(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    options = ({}, {"unique_texts": True}, {"unicode": "NFC"}, {"unicode": "NFKC"})
    keys = {plan(text_corpus(tmp_path, **one), 9).units[0].key for one in options}
    assert len(keys) == 4


def test_rows_without_captions_are_like_no_other(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(8, dtype=np.float32))
    corpus = text_corpus(tmp_path, unique_texts=True)
    units = plan(corpus, 3).units
    hashes = [(one.key, row_hashes(read_unit(corpus, one), texts=True)) for one in units]
    assert len(Duplicates.from_units(hashes)) == 0
