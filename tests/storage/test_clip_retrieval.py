import numpy as np
import pandas
import pytest

from pipeline.storage import Corpus, plan, read_unit
from pipeline.storage.corpus import corpus_files, resolve_format
from tests.storage.samples import read_all, reasons, unit_norm, write_parquet


def write_folder(folder, counts, digits, sides=("img", "text"), metadata=True, **columns):
    """Write a folder as `clip-retrieval inference` does, by pandas and numpy."""
    for number, rows in enumerate(counts):
        name = str(number).zfill(digits)
        for side in sides:
            (folder / f"{side}_emb").mkdir(parents=True, exist_ok=True)
            values = unit_norm(rows, seed=10 * number + (side == "img")).astype(np.float16)
            np.save(folder / f"{side}_emb" / f"{side}_emb_{name}.npy", values)
        if metadata:
            (folder / "metadata").mkdir(exist_ok=True)
            table = {
                "image_path": [f"{number}-{row}" for row in range(rows)],
                "caption": [f"caption {number}-{row}" for row in range(rows)],
                "url": [f"https://example.org/{number}/{row}" for row in range(rows)],
                **{key: make(number, rows) for key, make in columns.items()},
            }
            path = folder / "metadata" / f"metadata_{name}.parquet"
            pandas.DataFrame(table).to_parquet(path)
    return folder


def corpus_of(folder, side="image", **fields):
    return Corpus(path=str(folder), modality=side, **fields)


def named(number, rows):
    return [f"id-{number}-{row}" for row in range(rows)]


@pytest.mark.parametrize("digits", [1, 2, 4])
@pytest.mark.parametrize("side", ["image", "text"])
def test_the_side_decides_what_is_read(tmp_path, digits, side):
    counts = [3] * 11
    write_folder(tmp_path, counts, digits, id=named)
    corpus = corpus_of(tmp_path, side)
    found, entries = corpus_files(corpus)
    stem = {"image": "img_emb", "text": "text_emb"}[side]
    assert found == "clip-retrieval"
    # By number, whether it is padded or not.
    assert [entry.name for entry in entries] == [
        f"{stem}/{stem}_{str(number).zfill(digits)}.npy" for number in range(11)
    ]
    assert corpus.holds_embeddings
    table = read_all(corpus, 2)
    assert table.column("id").to_pylist() == [
        f"id-{n}-{row}" for n in range(11) for row in range(3)
    ]
    assert table.column("text").to_pylist()[3:5] == ["caption 1-0", "caption 1-1"]
    wanted = np.concatenate([unit_norm(3, seed=10 * n + (side == "image")) for n in range(11)])
    np.testing.assert_allclose(table.column("embedding").to_pylist(), wanted, atol=2e-3)
    assert reasons(table) == [None] * 33


def test_ids_captions_and_passed_through_columns(tmp_path):
    write_folder(tmp_path, [5, 4], 1, key=lambda n, rows: range(100 * n, 100 * n + rows))
    assert not plan(corpus_of(tmp_path), 2).has_ids
    derived = read_all(corpus_of(tmp_path), 2)
    assert len(set(derived.column("id").to_pylist())) == 9
    fields = {"id_column": "key", "text_column": "image_path", "passed_through": ("url",)}
    table = read_all(corpus_of(tmp_path, "text", **fields), 2)
    ids = [*map(str, range(5)), *map(str, range(100, 104))]
    assert table.column("id").to_pylist() == ids
    assert table.column("text")[0].as_py() == "0-0"
    assert table.column("url").to_pylist()[5:7] == [f"https://example.org/1/{n}" for n in (0, 1)]
    keys = {unit.key for unit in plan(corpus_of(tmp_path), 2).units}
    others = {unit.key for unit in plan(corpus_of(tmp_path, **fields), 2).units}
    assert not keys & others


def test_files_without_metadata(tmp_path):
    write_folder(tmp_path, [3, 3], 1, sides=("img",), metadata=False)
    table = read_all(corpus_of(tmp_path), 2)
    assert "text" not in table.column_names
    assert len(table) == 6
    with pytest.raises(ValueError, match="has no column url"):
        plan(corpus_of(tmp_path, passed_through=("url",)), 2)
    with pytest.raises(ValueError, match=r"has no text_emb/text_emb_N\.npy"):
        plan(corpus_of(tmp_path, "text"), 2)


def test_metadata_of_one_file_is_missing_or_padded_otherwise(tmp_path):
    write_folder(tmp_path, [3, 4], 1, id=named)
    path = tmp_path / "metadata" / "metadata_1.parquet"
    path.rename(path.with_name("metadata_0001.parquet"))
    assert read_all(corpus_of(tmp_path)).column("id")[3].as_py() == "id-1-0"
    path.with_name("metadata_0001.parquet").unlink()
    with pytest.raises(ValueError, match=r"img_emb_1\.npy has no metadata; .*metadata_1\.parquet"):
        plan(corpus_of(tmp_path), 2)
    (tmp_path / "img_emb" / "img_emb_x.npy").write_bytes(b"")
    planned = plan(corpus_of(tmp_path), 2, "skip")
    assert (planned.rows, len(planned.skipped_files)) == (3, 1)


def test_rows_that_do_not_agree(tmp_path):
    write_folder(tmp_path, [3, 4], 1)
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", unit_norm(5))
    with pytest.raises(ValueError, match=r"metadata_1\.parquet has 4 rows, .*img_emb_1\.npy has 5"):
        plan(corpus_of(tmp_path), 2)
    assert plan(corpus_of(tmp_path, "text"), 2).rows == 7
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", unit_norm(4, 9))
    with pytest.raises(ValueError, match=r"9-dimensional embeddings, .* 8-dimensional"):
        plan(corpus_of(tmp_path), 2)


def test_columns_of_metadata_that_cannot_be_used(tmp_path):
    write_folder(tmp_path, [3], 1, id=lambda n, rows: [1.5] * rows)
    with pytest.raises(ValueError, match=r"'id' of .* is double, not strings or integers"):
        plan(corpus_of(tmp_path), 2)
    with pytest.raises(ValueError, match=r"metadata_0\.parquet has no column said; it has image_"):
        plan(corpus_of(tmp_path, text_column="said"), 2)
    write_parquet(tmp_path / "metadata" / "metadata_0.parquet", {"caption": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"'caption' of .* is int64, not text"):
        plan(corpus_of(tmp_path), 2)
    (tmp_path / "metadata" / "metadata_0.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match="is not a readable Parquet file"):
        plan(corpus_of(tmp_path), 2)


def test_metadata_that_changes_is_noticed(tmp_path):
    write_folder(tmp_path, [6], 1, id=named)
    corpus = corpus_of(tmp_path)
    before = plan(corpus, 4)
    cache = str(tmp_path / "cache.json")
    plan(corpus, 4, cache=cache)
    write_folder(tmp_path, [6], 1, id=lambda n, rows: [f"other-{row}" for row in range(rows)])
    with pytest.raises(ValueError, match="was changed during the run"):
        read_unit(corpus, before.units[0])
    after = plan(corpus, 4, cache=cache)
    assert after == plan(corpus, 4)
    assert after.digest != before.digest


def test_the_format_named_and_one_file_alone(tmp_path):
    write_folder(tmp_path, [3, 3], 2, id=named)
    assert plan(corpus_of(tmp_path, format="clip-retrieval"), 5).rows == 6
    one = corpus_of(tmp_path / "img_emb" / "img_emb_01.npy", format="clip-retrieval")
    assert read_all(one).column("id").to_pylist() == ["id-1-0", "id-1-1", "id-1-2"]
    # Without it a .npy is just that.
    assert resolve_format(corpus_of(tmp_path / "img_emb" / "img_emb_01.npy")) == "npy"
    assert plan(corpus_of(tmp_path / "img_emb"), 5).rows == 6
    np.save(tmp_path / "plain.npy", unit_norm(3))
    with pytest.raises(ValueError, match="has no number"):
        plan(corpus_of(tmp_path / "plain.npy", format="clip-retrieval"), 5)
