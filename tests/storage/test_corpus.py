import os
from pathlib import Path

import pytest

from pipeline.storage import Corpus, Unit, plan, read_unit
from pipeline.storage.corpus import corpus_files, resolve_format
from tests.storage.samples import text_corpus, write_dataset, write_parquet


def test_a_folder_is_its_known_files_sorted(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.txt", "a.txt", ".hidden.txt", "notes.md", "below/c.txt"):
        (tmp_path / name).write_text("x\n")
    found, entries = corpus_files(text_corpus(tmp_path))
    assert found == "text"
    assert [entry.name for entry in entries] == ["a.txt", "b.txt", "below/c.txt"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.txt", "text"),
        ("a.jsonl", "jsonl"),
        ("a.NDJSON", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.npy", "npy"),
    ],
)
def test_endings(tmp_path, name, found):
    (tmp_path / name).write_text("x")
    assert resolve_format(text_corpus(tmp_path / name)) == found
    assert resolve_format(text_corpus(tmp_path)) == found
    assert text_corpus(tmp_path / name).holds_embeddings == (found == "npy")
    assert text_corpus(tmp_path, embedding_column="e").holds_embeddings


def test_a_glob_and_a_path_with_glob_signs(tmp_path):
    for name in ("a-1.txt", "a-2.txt", "b.txt", "c[1].txt"):
        (tmp_path / name).write_text("x\n")
    assert [e.name for e in corpus_files(text_corpus(tmp_path / "a-*.txt"))[1]] == [
        "a-1.txt",
        "a-2.txt",
    ]
    assert [e.name for e in corpus_files(text_corpus(tmp_path / "c[1].txt"))[1]] == ["c[1].txt"]


@pytest.mark.parametrize(
    "name",
    [
        "a b.txt",
        "a%20b.txt",
        "a#b.txt",
        "a?b.txt",
        "a\\b.txt",
        "[a].txt",
        "*.txt",
        "{a}.txt",
        "é.txt",
    ],
)
def test_names_with_signs_of_urls_and_globs_are_read(tmp_path, name):
    (tmp_path / name).write_text("one\ntwo\n")
    for path in (tmp_path, tmp_path / name):
        (unit,) = plan(text_corpus(path), 10).units
        assert unit.path == str(tmp_path / name)
        assert read_unit(text_corpus(path), unit).column("text").to_pylist() == ["one", "two"]


@pytest.mark.parametrize(
    "name",
    [b"a\nb.txt", b"a\tb.txt", b"a\x1b[2J.txt", b"a\x7f.txt", b"\xff.txt", "\u2028.txt".encode()],
)
def test_names_that_no_message_can_hold_are_refused(tmp_path, name):
    path = str(tmp_path / os.fsdecode(name))
    Path(path).write_text("one\n")
    for corpus in (text_corpus(tmp_path), text_corpus(path), text_corpus(tmp_path / "*.txt")):
        with pytest.raises(ValueError, match="in its name; rename it") as caught:
            plan(corpus, 10)
        message = str(caught.value)
        assert ascii(path) in message
        assert message.isprintable()
        assert message.isascii()


def test_ids_files_beside_arrays_are_not_data(tmp_path):
    for name in ("x.npy", "x_ids.npy", "y.npy", "y.ids.txt"):
        (tmp_path / name).write_text("x")
    found, entries = corpus_files(text_corpus(tmp_path))
    assert (found, [entry.name for entry in entries]) == ("npy", ["x.npy", "y.npy"])


def test_a_dataset_folder_is_known_by_its_pointer(tmp_path):
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    corpus = text_corpus(tmp_path / "out")
    assert resolve_format(corpus) == "dataset"
    assert corpus.holds_embeddings


def test_errors_name_the_place(tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder .*/none"):
        plan(text_corpus(tmp_path / "none"), 10)
    with pytest.raises(ValueError, match=r"no file ending in .*\.txt"):
        plan(text_corpus(tmp_path), 10)
    with pytest.raises(ValueError, match="no file ending"):
        plan(text_corpus(tmp_path / "*.txt"), 10)
    (tmp_path / "a.cfg").write_text("x")
    with pytest.raises(ValueError, match="ending that is not known"):
        plan(text_corpus(tmp_path / "a.cfg"), 10)
    (tmp_path / "a.txt").write_text("x\n")
    write_parquet(tmp_path / "a.parquet", {"text": ["x"]})
    with pytest.raises(ValueError, match=r"several formats .*parquet, text"):
        plan(text_corpus(tmp_path), 10)
    assert plan(text_corpus(tmp_path, format="text"), 10).rows == 1
    assert plan(text_corpus(tmp_path / "a.cfg", format="text"), 10).rows == 1


def test_a_corpus_that_contradicts_itself():
    with pytest.raises(ValueError, match="text or image"):
        Corpus(path="x", modality="sound")
    with pytest.raises(ValueError, match="format"):
        text_corpus("x", format="xlsx")
    with pytest.raises(ValueError, match="passed through"):
        text_corpus("x", passed_through=("reject",))
    with pytest.raises(ValueError, match="twice"):
        text_corpus("x", passed_through=("a", "a"))
    with pytest.raises(ValueError, match="passed through"):
        Corpus(path="x", modality="image", passed_through=("image",))
    text_corpus("x", passed_through=("image",))


def test_a_unit_goes_through_json(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["é"], "extra": [[{"a": 1}]]})
    (unit,) = plan(text_corpus(path, passed_through=("extra",)), 10).units
    again = Unit.from_json(unit.to_json())
    assert again == unit
    assert again.passed_through_schema.names == ["extra"]


def test_a_saved_data_set_is_known(tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(ValueError, match="set format: datasets"):
        plan(text_corpus(tmp_path), 10)
