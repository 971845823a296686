import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import DuplicateIds, id_hashes, plan, read_unit
from pipeline.storage.duplicates import hash_ids
from tests.storage.samples import reasons, text_corpus, write_jsonl


@given(st.lists(st.sets(st.sampled_from("abcdefgh")).map(sorted), max_size=6))
def test_every_id_is_kept_once_by_its_first_unit(units):
    hashes = [(f"unit-{index}", hash_ids(ids)) for index, ids in enumerate(units)]
    found = pickle.loads(pickle.dumps(DuplicateIds.from_units(hashes)))
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
    found = DuplicateIds.from_units([("a", rows[[0, 1, 3]]), ("b", rows[[2, 1, 3]])])
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
    found = DuplicateIds.from_units(
        [(unit.key, id_hashes(table)) for unit, table in zip(units, tables, strict=True)]
    )
    assert len(found) == 1
    again = [read_unit(corpus, unit, duplicate_ids=found) for unit in units]
    assert [reasons(table) for table in again] == [[None] * 3, ["duplicate_id", None, "empty"]]
    assert again[1].column("content")[0].as_py() == b'{"id": "a", "text": "y"}'


def test_no_duplicates_are_small():
    found = DuplicateIds.from_units([("a", hash_ids(["1", "2"])), ("b", hash_ids(["3"]))])
    assert len(found) == 0
    assert found.rejected("a", hash_ids(["1"])).tolist() == [False]
    assert len(DuplicateIds.from_units([])) == 0
