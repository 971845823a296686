from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import Corpus, parquet_files, plan, read_unit
from tests.storage.samples import (
    ALL_REASONS,
    read_all,
    reasons,
    text_corpus,
    unit_norm,
    vectors,
    write_dataset,
    write_jsonl,
    write_parquet,
)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), rows=st.integers(1, 4))
def test_no_line_of_any_text_is_lost(tmp_path_factory, data, rows):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    data = b"x" + data.replace(b"\x00", b"\n")
    path.write_bytes(data)
    corpus = text_corpus(path)
    planned = plan(corpus, rows)
    tables = [read_unit(corpus, unit) for unit in (*planned.units, *planned.duplicate_units)]
    assert sum(len(table) for table in tables) == data.count(b"\n") + (not data.endswith(b"\n"))
    for table in tables:
        for row in table.to_pylist():
            if row["reject"] is None:
                assert row["text"].strip()
                assert row["content"] is None
            else:
                assert row["reject"] in {"empty", "not_utf8", "control_characters"}
                assert row["content"] is not None


def test_text_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n \t\r\n\xff\xfe\ntwo \xc3\xa9")
    corpus = text_corpus(tmp_path)
    (unit,) = plan(corpus, 10).units
    table = read_unit(corpus, unit)
    assert table.column_names == ["row", "id", "text", "content", "reject"]
    assert table.column("row").to_pylist() == [0, 1, 2, 3]
    assert table.column("text").to_pylist() == ["one", " \t", None, "two é"]
    assert reasons(table) == [None, "empty", "not_utf8", None]
    assert table.column("content").to_pylist() == [None, b" \t", b"\xff\xfe", None]
    assert table.column("id")[3].as_py() == f"{unit.digest[:16]}-000003"


@pytest.mark.parametrize(
    ("form", "found"), [("none", "ﬁ e\u0301"), ("NFC", "ﬁ é"), ("NFKC", "fi é")]
)
def test_unicode_forms(tmp_path, form, found):
    (tmp_path / "a.txt").write_text("ﬁ e\u0301\n", encoding="utf-8")
    assert read_all(text_corpus(tmp_path, unicode=form)).column("text").to_pylist() == [found]


def test_other_separators_stay_in_the_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\u2028b\x85c\rd\te\n".encode())
    table = read_all(text_corpus(tmp_path))
    assert table.column("text").to_pylist() == ["a\u2028b\x85c\rd\te"]
    assert reasons(table) == [None]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_parquet_text_of_any_type(tmp_path, kind):
    text = pa.array(["one", None, " ", "é"]).cast(kind)
    path = write_parquet(tmp_path / "a.parquet", {"text": text, "id": text.take(pa.array([0] * 4))})
    table = read_all(text_corpus(path, id_column="id"))
    assert reasons(table) == [None, "empty", "empty", "duplicate_id"]
    assert table.schema.field("text").type == pa.string()
    assert table.column("text")[3].as_py() == "é"


def test_parquet_strings_that_are_not_utf8(tmp_path):
    broken = pa.array([b"a", b"\xff", b"c", b"d"], pa.binary())
    offsets_and_bytes = broken.buffers()
    column = pa.Array.from_buffers(pa.string(), 4, offsets_and_bytes)
    nested = pa.ListArray.from_arrays([0, 1, 2, 3, 4], column)
    path = write_parquet(
        tmp_path / "a.parquet",
        {"text": column, "id": [1, 2, 3, 4], "nested": nested.take(pa.array([0, 0, 1, 3]))},
    )
    table = read_all(text_corpus(path, passed_through=("nested",)))
    assert reasons(table) == [None, "not_utf8", "not_utf8", None]
    assert table.column("content").to_pylist() == [None, b"\xff", b"c", None]
    ids = read_all(text_corpus(path, id_column="text", text_column="text"))
    assert reasons(ids) == [None, "not_utf8", None, None]


def test_parquet_slices_are_the_rows_in_order(tmp_path):
    ids = [str(row) for row in range(105)]
    path = write_parquet(tmp_path / "a.parquet", {"id": ids, "text": ids}, row_group_size=35)
    corpus = text_corpus(path)
    for rows_per_shard in (10, 35, 40, 80, 200):
        assert read_all(corpus, rows_per_shard).column("id").to_pylist() == ids


def test_parquet_without_ids(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["x"] * 4})
    table = read_all(text_corpus(path), 2)
    assert len(set(table.column("id").to_pylist())) == 4
    assert reasons(table) == [None] * 4


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("layout", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_embeddings_of_any_type(tmp_path, kind, layout):
    rows = [[3.0, 4.0], None, [np.nan, 1.0], [0.0, 0.0], [np.inf, 0.0], [0.0, -2.0]]
    arrow = pa.array(
        [None if row is None else [np.float16(x) for x in row] for row in rows],
        layout(pa.float16()),
    ).cast(layout(kind))
    path = write_parquet(tmp_path / "a.parquet", {"id": list("abcdef"), "e": arrow})
    table = read_all(text_corpus(path, embedding_column="e"), 4)
    assert reasons(table) == [
        None,
        "not_finite",
        "not_finite",
        "zero_embedding",
        "not_finite",
        None,
    ]
    kind = table.schema.field("embedding").type
    assert (kind.list_size, kind.value_type) == (2, pa.float32())
    expected = [[0.6, 0.8], [0, 0], [0, 0], [0, 0], [0, 0], [0, -1]]
    np.testing.assert_allclose(table.column("embedding").to_pylist(), expected, rtol=1e-6)


def test_embeddings_of_another_width(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"e": [[1.0, 0.0], [1.0], [0.0, 1.0, 0.0]]})
    corpus = text_corpus(path, embedding_column="e")
    assert reasons(read_all(corpus)) == [None, "wrong_dimension", "wrong_dimension"]
    table = read_all(corpus, dimension=3)
    assert reasons(table) == ["wrong_dimension", "wrong_dimension", None]
    assert table.column("content")[1].as_py() == b"[1.0]"
    fixed = write_parquet(tmp_path / "b.parquet", {"e": vectors(unit_norm(3, 4))})
    table = read_all(text_corpus(fixed, embedding_column="e"), dimension=8)
    assert reasons(table) == ["wrong_dimension"] * 3


def test_embeddings_too_large_or_small_to_square(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"e": [[3e200, 4e200], [3e-200, 4e-200]]})
    table = read_all(text_corpus(path, embedding_column="e"))
    assert reasons(table) == [None, None]
    np.testing.assert_allclose(table.column("embedding").to_pylist(), [[0.6, 0.8]] * 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_arrays(tmp_path, dtype):
    values = unit_norm(5).astype(dtype)
    values[2] = 0
    np.save(tmp_path / "a.npy", values * 3)
    (tmp_path / "a.ids.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc\r\n\r\na\r\n")
    table = read_all(Corpus(path=str(tmp_path), modality="image"), 2)
    assert table.column("id").to_pylist() == ["a", "b", "c", "", "a"]
    assert reasons(table) == [None, None, "zero_embedding", "missing_id", None]
    got = np.array(table.column("embedding").to_pylist())
    np.testing.assert_allclose(got[[0, 1, 4]], unit_norm(5)[[0, 1, 4]], atol=2e-3)
    np.save(tmp_path / "b.npy", np.array(list("vwxyz"), dtype="U3"))
    named = Corpus(path=str(tmp_path / "a.npy"), modality="text", ids_path=str(tmp_path / "b.npy"))
    assert read_all(named, 3).column("id").to_pylist() == list("vwxyz")
    np.save(tmp_path / "b.npy", np.array([b"v", b"w", b"\xff", b"y", b"z"]))
    assert reasons(read_all(named, 3)) == [None, None, "not_utf8", None, None]


def test_images(tmp_path):
    images = [b"png", None, b"", b"png"]
    plain = write_parquet(tmp_path / "a.parquet", {"id": list("abcd"), "image": images})
    nested = write_parquet(
        tmp_path / "b.parquet",
        {
            "key": list("abcd"),
            "picture": [{"bytes": one, "path": "x.png"} for one in images[:3]] + [None],
        },
    )
    table = read_all(Corpus(path=plain, modality="image"))
    assert table.column_names == ["row", "id", "image", "content", "reject"]
    assert table.schema.field("image").type == pa.binary()
    assert reasons(table) == [None, "undecodable_image", "undecodable_image", None]
    corpus = Corpus(path=nested, modality="image", image_column="picture", id_column="key")
    assert reasons(read_all(corpus)) == [None, *["undecodable_image"] * 3]
    assert read_all(corpus).column("image")[0].as_py() == b"png"


def test_a_dataset_is_read_back(tmp_path):
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    table = read_all(text_corpus(tmp_path / "out", passed_through=("conversations",)))
    assert reasons(table) == [None] * 27
    assert {"id", "text", "embedding", "conversations"} <= set(table.column_names)
    norms = np.linalg.norm(np.array(table.column("embedding").to_pylist()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_passed_through_types_are_the_first_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["x"], "n": pa.array([1], pa.int64())})
    write_parquet(tmp_path / "b.parquet", {"text": ["y"], "n": pa.array([2], pa.int32())})
    corpus = text_corpus(tmp_path, passed_through=("n",))
    assert read_all(corpus).column("n").to_pylist() == [1, 2]
    write_parquet(tmp_path / "b.parquet", {"text": ["y"], "n": ["two"]})
    with pytest.raises(
        ValueError, match=r"'n' of .*b\.parquet is string and does not fit the int64"
    ):
        read_all(corpus)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.npy"])
def test_a_file_that_changed_or_went_since_it_was_planned(tmp_path, name):
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("one\ntwo\n")
    elif name == "a.jsonl":
        path.write_text('{"text": "one"}\n')
    elif name == "a.parquet":
        write_parquet(path, {"text": ["x", "y"]})
    else:
        np.save(path, unit_norm(4))
    corpus = text_corpus(path)
    (unit,) = plan(corpus, 10).units
    if name == "a.parquet":
        write_parquet(path, {"text": ["x"]})
    elif name == "a.npy":
        np.save(path, unit_norm(3))
    else:
        path.write_bytes(path.read_bytes().replace(b"o", b"0"))
    with pytest.raises(ValueError, match="was changed during the run"):
        read_unit(corpus, unit)
    path.unlink()
    with pytest.raises(ValueError, match=r"no file|is gone"):
        read_unit(corpus, unit)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_captions_too_long_or_with_control_characters(tmp_path, kind):
    captions = [
        "é" * 32_768,
        "é" * 32_769,
        "a\x00b",
        "a\x1b[2Jb",
        "a\x7fb",
        "a\tb\rc",
        "\x01",
        "ok",
    ]
    if kind == "text":
        (tmp_path / "a.txt").write_bytes("\n".join(captions).encode())
    elif kind == "jsonl":
        write_jsonl(tmp_path / "a.jsonl", [{"text": caption} for caption in captions])
    else:
        write_parquet(tmp_path / "a.parquet", {"text": captions})
    table = read_all(text_corpus(tmp_path))
    control = "control_characters"
    expected = [None, "too_long", control, control, control, None, control, None]
    assert reasons(table) == expected
    contents = table.column("content").to_pylist()
    assert [content is None for content in contents] == [reason is None for reason in expected]
    assert len(contents[1]) == 64 * 1024
    if kind != "jsonl":
        assert contents[2:5] == [caption.encode() for caption in captions[2:5]]
    assert reasons(read_all(text_corpus(tmp_path, max_text_bytes=2)))[-1] is None
    assert reasons(read_all(text_corpus(tmp_path, max_text_bytes=1)))[-1] == "too_long"


def test_ids_that_could_do_harm_as_a_path(tmp_path):
    unsafe = [
        "../../etc/x",
        "a/../b",
        "..",
        "a\\..\\b",
        "/etc/x",
        "\\\\host\\x",
        "a\x00",
        "a\tb",
        "a\nb",
    ]
    unsafe += ["a\x7f", "x" * 1025, "é" * 513]
    safe = [
        "a/b.jpg",
        "a..b",
        "...",
        "..a/b..",
        "x" * 1024,
        "é" * 512,
        "s3://bucket/a b?c=%2e%2e#d",
    ]
    ids = [one for pair in zip(unsafe, [*safe, *"vwxyz"], strict=True) for one in pair]
    write_jsonl(tmp_path / "a.jsonl", [{"id": one, "text": "x"} for one in ids])
    table = read_all(text_corpus(tmp_path))
    assert reasons(table) == ["unsafe_id", None] * len(unsafe)
    assert table.column("id").to_pylist()[:20] == ids[:20]
    assert max(map(len, table.column("id").to_pylist())) == 1024
    # Twice the same unsafe id is unsafe twice, and an unsafe row takes no id from a good one.
    write_jsonl(tmp_path / "a.jsonl", [{"id": one, "text": "x"} for one in ["..", "..", "a"]])
    assert reasons(read_all(text_corpus(tmp_path))) == ["unsafe_id", "unsafe_id", None]


def test_ids_of_arrays_and_images_are_looked_at_too(tmp_path):
    np.save(tmp_path / "a.npy", unit_norm(2))
    (tmp_path / "a.ids.txt").write_bytes(b"../a\nb\n")
    assert reasons(read_all(text_corpus(tmp_path))) == ["unsafe_id", None]
    images = write_parquet(tmp_path / "a.parquet", {"id": ["../a", "b"], "image": [b"x", b"y"]})
    assert reasons(read_all(Corpus(path=images, modality="image"))) == ["unsafe_id", None]


def test_text_beside_embeddings_is_looked_at_where_it_is_kept(tmp_path):
    columns = {"id": ["a", "b"], "text": ["x\x00", None], "e": vectors(unit_norm(2))}
    path = write_parquet(tmp_path / "a.parquet", columns)
    corpus = text_corpus(path, embedding_column="e")
    assert reasons(read_all(corpus)) == ["control_characters", None]
    images = Corpus(path=path, modality="image", embedding_column="e")
    assert reasons(read_all(images)) == [None, None]


def test_a_stored_dataset_is_not_checked_again(tmp_path):
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    corpus = text_corpus(tmp_path / "out", max_text_bytes=1)
    assert reasons(read_all(corpus)) == [None] * 27


def test_every_reason_is_given_somewhere_above_or_to_json_lines():
    above = Path(__file__).read_text().partition("def test_every_reason")[0]
    for name in ("test_line_files.py", "test_duplicates.py"):
        above += Path(__file__).with_name(name).read_text()
    by_the_encoder = {"unencodable"}
    missing = {reason for reason in ALL_REASONS if f'"{reason}"' not in above}
    assert missing == by_the_encoder


def test_a_plain_shard_is_read_as_if_it_were_decoded(tmp_path, monkeypatch):
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    corpus = text_corpus(tmp_path / "out")
    plain = read_all(corpus)
    monkeypatch.setattr(parquet_files, "plain_embeddings", lambda *_: None)
    assert read_all(corpus).equals(plain)


def test_another_column_of_a_dataset_is_not_taken_for_its_embeddings(tmp_path):
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    with pytest.raises(ValueError, match=r"has no column other; it has id"):
        read_all(text_corpus(tmp_path / "out", embedding_column="other"))
