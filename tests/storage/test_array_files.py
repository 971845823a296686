"""Embeddings in files of every kind: the same rows, in slices of any size."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from pipeline.storage import Corpus, locations, plan, read_unit
from tests.storage.embeddings import KINDS, write_file, write_kind
from tests.storage.samples import read_all, reasons, text_corpus, unit_norm

ROWS, WIDTH = 23, 8
IDS = [f"r{row:02d}" for row in range(ROWS)]


def image_corpus(path, **fields):
    return Corpus(path=str(path), modality="image", **fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_every_kind_has_the_same_rows(tmp_path, kind, dtype):
    values = (unit_norm(ROWS, WIDTH) * 3).astype(dtype)
    values[4], values[9], values[10, 3] = 0, np.nan, np.inf
    settings = write_kind(tmp_path / "in", kind, values, IDS)
    corpus = image_corpus(tmp_path / "in", **settings)
    planned = plan(corpus, 5)
    assert (planned.rows, planned.dimension, planned.has_ids) == (ROWS, WIDTH, True)
    assert [unit.rows for unit in planned.units] == [5, 5, 2, 5, 5, 1]
    table = read_all(corpus, 5)
    assert table.column("id").to_pylist() == IDS
    bad = {4: "zero_embedding", 9: "not_finite", 10: "not_finite"}
    assert reasons(table) == [bad.get(row) for row in range(ROWS)]
    got = np.array(table.column("embedding").to_pylist())
    good = [row for row in range(ROWS) if row not in bad]
    wanted = values.astype(np.float64)[good]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(got[good], wanted, atol=1e-7)
    assert not got[list(bad)].any()
    assert all(table.column("content")[row].as_py() for row in bad)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_any_store(tmp_path, place, kind):
    values = unit_norm(ROWS, WIDTH)
    settings = write_kind(tmp_path / "in", kind, values, IDS)
    for path in sorted((tmp_path / "in").rglob("*.*")):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            locations.write_bytes(locations.join(place, name), path.read_bytes())
    corpus = image_corpus(locations.join(place, "in"), **settings)
    table = read_all(corpus, 5)
    assert table.column("id").to_pylist() == IDS
    np.testing.assert_allclose(table.column("embedding").to_pylist(), values, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_replaced_by_one_of_as_many_rows_is_refused(tmp_path, kind):
    values = unit_norm(ROWS, WIDTH)
    settings = write_kind(tmp_path / "in", kind, values, IDS)
    corpus = image_corpus(tmp_path / "in", **settings)
    units = plan(corpus, 5).units
    read_unit(corpus, units[0])
    write_file(tmp_path / "in", kind, 0, -values[:12], IDS[:12])
    with pytest.raises(ValueError, match="was changed during the run"):
        read_unit(corpus, units[1])
    assert len(read_unit(corpus, dataclasses.replace(units[1], identity=None))) == 5
    assert len(read_unit(corpus, units[-1])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_widths_differ(tmp_path, kind):
    settings = write_kind(tmp_path / "in", kind, unit_norm(ROWS, WIDTH), IDS)
    write_file(tmp_path / "in", kind, 1, unit_norm(11, WIDTH + 1), IDS[12:])
    corpus = image_corpus(tmp_path / "in", **settings)
    if kind in ("pickle", "pickle by id", "parquet"):
        found = reasons(read_all(corpus))
        assert found == [None] * 12 + ["wrong_dimension"] * 11
        return
    with pytest.raises(ValueError, match=r"9-dimensional embeddings, .* 8-dimensional"):
        plan(corpus, 5)


@pytest.mark.parametrize("kind", ["npz", "npz deflated", "safetensors"])
def test_the_array_that_is_read_is_part_of_a_units_key(tmp_path, kind):
    first, second = unit_norm(6, WIDTH), unit_norm(6, WIDTH, seed=1)
    arrays = {"embeddings": first, "other": second}
    if kind == "safetensors":
        path = tmp_path / "a.safetensors"
        safetensors.numpy.save_file(arrays, path)
    else:
        path = tmp_path / "a.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(path, **arrays)
    corpora = [text_corpus(path), text_corpus(path, embedding_column="other")]
    digests = [plan(corpus, 10).digest for corpus in corpora]
    assert digests[0] != digests[1]
    for corpus, values in zip(corpora, (first, second), strict=True):
        table = read_all(corpus)
        np.testing.assert_allclose(table.column("embedding").to_pylist(), values, atol=1e-6)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_which_array_is_taken(tmp_path, ending):
    def written(**arrays):
        path = tmp_path / f"a{ending}"
        if ending == ".npz":
            np.savez(path, **arrays)
        else:
            safetensors.numpy.save_file(arrays, path)
        return path

    wanted, other = unit_norm(3, WIDTH), unit_norm(3, WIDTH, seed=1)
    for names in (("any",), ("embedding", "other"), ("embeddings", "a"), ("image", "text")):
        path = written(**dict(zip(names, (wanted, other), strict=False)), steps=np.arange(3.0))
        table = read_all(image_corpus(path))
        np.testing.assert_allclose(table.column("embedding").to_pylist(), wanted, atol=1e-6)
    path = written(a=wanted, b=other)
    with pytest.raises(ValueError, match=r"several arrays .* a, b; .*image\.embedding_column"):
        plan(image_corpus(path), 5)
    with pytest.raises(ValueError, match="has no array c; it has a, b"):
        plan(image_corpus(path, embedding_column="c"), 5)
    with pytest.raises(ValueError, match="has no array key; it has a, b"):
        plan(image_corpus(path, embedding_column="a", id_column="key"), 5)
    with pytest.raises(ValueError, match="no array that could be the embeddings"):
        plan(image_corpus(written(steps=np.arange(3))), 5)
    with pytest.raises(ValueError, match=r"'flat' of .*2-d array"):
        plan(image_corpus(written(flat=np.arange(3.0)), embedding_column="flat"), 5)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_ids_within_and_beside(tmp_path, ending):
    path = tmp_path / f"a{ending}"

    def written(**arrays):
        if ending == ".npz":
            np.savez(path, embedding=unit_norm(3), **arrays)
        else:
            safetensors.numpy.save_file({"embedding": unit_norm(3), **arrays}, path)

    written()
    assert not plan(text_corpus(tmp_path), 2).has_ids
    written(ids=np.array([7, 8, -9]), key=np.array([1, 2, 3], np.uint8))
    assert read_all(text_corpus(tmp_path), 2).column("id").to_pylist() == ["7", "8", "-9"]
    named = read_all(text_corpus(tmp_path, id_column="key"), 2)
    assert named.column("id").to_pylist() == ["1", "2", "3"]
    (tmp_path / "a.ids.txt").write_text("x\ny\nz\n")
    assert read_all(text_corpus(tmp_path), 2).column("id").to_pylist() == ["x", "y", "z"]
    (tmp_path / "a.ids.txt").unlink()
    np.save(tmp_path / "a_ids.npy", np.array([5, 6, 7]))
    assert read_all(text_corpus(tmp_path), 2).column("id").to_pylist() == ["5", "6", "7"]
    for wrong in (np.arange(2), np.arange(4)):
        np.save(tmp_path / "a_ids.npy", wrong)
        with pytest.raises(ValueError, match="does not have one id for each of the 3 rows"):
            plan(text_corpus(tmp_path), 2)
    (tmp_path / "a_ids.npy").unlink()
    written(id=np.array([1, 2]))
    with pytest.raises(ValueError, match=r"'id' of .* has 2 ids for the 3 rows"):
        plan(text_corpus(tmp_path), 2)
    written(id=np.array([1.5, 2, 3]))
    with pytest.raises(ValueError, match="1-d array of strings or integers"):
        plan(text_corpus(tmp_path), 2)


def test_ids_given_for_one_file(tmp_path):
    safetensors.numpy.save_file({"e": unit_norm(3)}, tmp_path / "a.safetensors")
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    corpus = text_corpus(tmp_path / "a.safetensors", ids_path=str(tmp_path / "names.txt"))
    assert read_all(corpus, 2).column("id").to_pylist() == ["x", "y", "z"]
