import os
import pickle

import numpy as np
import pytest
import torch

from pipeline.export.arrays import pickled_rows
from pipeline.storage import Corpus, kept, pickle_files, plan, read_unit
from tests.storage.samples import read_all, reasons, text_corpus, unit_norm

IDS = list("abcdefg")


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def rows_of(values, **more):
    return [{"id": one, **more, "embed": value} for one, value in zip(IDS, values, strict=True)]


def embeddings(table):
    return np.array(table.column("embedding").to_pylist())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_as_revisions_scripts_write_them(tmp_path, protocol):
    """Text and image rows of float16, rows of one batch's array."""
    values = unit_norm(7).astype(np.float16)
    text = rows_of(values, caption="a caption")
    images = rows_of(values, image_path="0001.jpg")
    for rows, found in ((text, ["a caption"] * 7), (images, None)):
        write(tmp_path / "text_embeds_1.pkl", rows, protocol)
        table = read_all(text_corpus(tmp_path), 3)
        assert table.column("id").to_pylist() == IDS
        np.testing.assert_allclose(embeddings(table), unit_norm(7), atol=2e-3)
        assert reasons(table) == [None] * 7
        if found is None:
            assert "text" not in table.column_names
        else:
            assert table.column("text").to_pylist() == found


def test_our_own_export_is_read_back(tmp_path):
    values = unit_norm(7)
    (tmp_path / "00000.pkl").write_bytes(pickled_rows(IDS, values.astype(np.float16)))
    table = read_all(text_corpus(tmp_path), 3)
    assert table.column("id").to_pylist() == IDS
    np.testing.assert_allclose(embeddings(table), values, atol=2e-3)


def test_dicts_by_id_lists_of_floats_and_other_keys(tmp_path):
    values = unit_norm(7)
    write(tmp_path / "a.pkl", dict(zip(IDS, values, strict=True)))
    by_id = read_all(text_corpus(tmp_path))
    assert by_id.column("id").to_pylist() == IDS
    write(tmp_path / "a.pkl", [{"key": 7, "said": "x", "vector": values[0].tolist()}])
    names = {"id_column": "key", "text_column": "said", "embedding_column": "vector"}
    (row,) = read_all(text_corpus(tmp_path, **names)).to_pylist()
    assert (row["id"], row["text"]) == ("7", "x")
    np.testing.assert_allclose(row["embedding"], values[0], atol=1e-6)
    np.testing.assert_allclose(embeddings(by_id), values, atol=1e-6)


def test_rows_without_ids(tmp_path):
    write(tmp_path / "a.pkl", [{"embed": value} for value in unit_norm(7)])
    planned = plan(text_corpus(tmp_path), 3)
    assert not planned.has_ids
    assert len(set(read_all(text_corpus(tmp_path), 3).column("id").to_pylist())) == 7


def test_rows_that_cannot_be_used(tmp_path):
    good = unit_norm(2)
    records = [
        {"id": "a", "embed": good[0]},
        {"id": "b", "embed": np.zeros(8)},
        {"id": "c", "embed": np.full(8, np.nan)},
        {"id": "d", "embed": np.ones(9)},
        {"id": "e", "caption": "x", "embed": None},
        {"id": "f", "embed": np.arange(8)},
        {"id": "g", "embed": np.ones((2, 8))},
        {"id": "h"},
        "no row",
        {"embed": good[1]},
        {"id": "a", "embed": good[1]},
        {"id": 11, "embed": good[1].reshape(1, 8)},
    ]
    write(tmp_path / "a.pkl", records)
    table = read_all(text_corpus(tmp_path))
    assert reasons(table) == [
        None,
        "zero_embedding",
        "not_finite",
        "wrong_dimension",
        *["malformed"] * 5,
        "missing_id",
        "duplicate_id",
        None,
    ]
    assert table.column("content")[4].as_py() == b"x"
    assert table.column("id").to_pylist()[-1] == "11"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "has no row"),
        ({}, "has no row"),
        ("text", "neither a list of rows"),
        ({"mean": np.zeros(3), "scale": 1.5}, "neither a list of rows"),
        ([{"id": "a", "vector": np.ones(3)}], "have no embed or embedding; they have id, vec"),
        ([{"id": "a", "embed": None}], "no embedding in its first rows"),
        ([{"id": "a", "embed": torch.ones(3)}], "it asks for torch"),
        ([{"id": "a", "embed": np.array([{}])}], "an array of 'O8'"),
    ],
)
def test_other_pickles(tmp_path, value, message):
    write(tmp_path / "a.pkl", value)
    with pytest.raises(ValueError, match=message) as caught:
        plan(text_corpus(tmp_path), 10)
    assert "\n" not in str(caught.value)


def test_keys_that_are_not_there(tmp_path):
    write(tmp_path / "a.pkl", rows_of(unit_norm(7)))
    for fields in ({"id_column": "k"}, {"text_column": "k"}, {"embedding_column": "k"}):
        with pytest.raises(ValueError, match=r"a\.pkl have no 'k'; they have embed, id"):
            plan(text_corpus(tmp_path, **fields), 10)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_crafted_file_is_refused_by_name_and_nothing_runs(tmp_path):
    mark = tmp_path / "ran"
    folder = tmp_path / "in"
    folder.mkdir()
    path = write(folder / "a.pkl", [{"id": "a", "embed": Runs(mark)}])
    with pytest.raises(
        ValueError, match=r"a\.pkl is not read: it asks for posix\.system; .*nothing in it was run"
    ):
        plan(text_corpus(folder), 10)
    write(folder / "b.pkl", rows_of(unit_norm(7)))
    planned = plan(text_corpus(folder), 10, "skip")
    assert [one.path for one in planned.skipped_files] == [str(path)]
    # Put in its place after planning, it is refused when it is read.
    (folder / "b.pkl").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="was changed during the run"):
        read_unit(text_corpus(folder), planned.units[0])
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


def test_rows_that_share_what_they_hold_are_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_files, "_ROOM_BYTES", 0)
    wide = np.ones(10_000)
    for shared in ({"embed": wide}, {"embed": wide[:3], "caption": "x" * 10_000}):
        write(tmp_path / "a.pkl", [{"id": row, **shared} for row in range(2000)])
        with pytest.raises(ValueError, match="more than 16 times its own size"):
            plan(text_corpus(tmp_path), 10)
    write(tmp_path / "a.pkl", [{"id": row, "embed": wide} for row in range(10)])
    assert plan(text_corpus(tmp_path), 10).rows == 10


def test_a_pickle_too_large_to_be_read_whole(tmp_path, monkeypatch):
    write(tmp_path / "a.pkl", rows_of(unit_norm(7)))
    monkeypatch.setattr(pickle_files, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"bytes, and a pickle is read as a whole"):
        plan(text_corpus(tmp_path), 10)


def test_a_file_is_read_once_for_its_units(tmp_path, monkeypatch):
    write(tmp_path / "a.pkl", rows_of(unit_norm(7)))
    corpus = text_corpus(tmp_path)
    units = plan(corpus, 2).units
    read = []
    real = pickle_files.read_plain_pickle
    monkeypatch.setattr(
        pickle_files, "read_plain_pickle", lambda data: read.append(1) or real(data)
    )
    for unit in units:
        read_unit(corpus, unit)
    assert len(read) == 1
    other = Corpus(path=str(tmp_path), modality="image", embedding_column="embed")
    read_unit(other, plan(other, 2).units[0])
    assert len(read) == 3  # planned, and read by other names
    monkeypatch.setattr(kept, "MOST_KEPT_BYTES", 10)
    monkeypatch.setattr(kept, "_file", None)
    for unit in units:
        read_unit(corpus, unit)
    assert len(read) == 3 + len(units)
