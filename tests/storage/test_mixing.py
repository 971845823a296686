from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import Corpus, Duplicates, plan, read_unit, row_hashes
from pipeline.storage.corpus import Part
from pipeline.storage.mixing import quotas
from tests.storage.samples import reasons, text_corpus, unit_norm, write_jsonl, write_parquet


def part(name, path="x", weight=None, max_rows=None, **fields):
    return Part(name=name, corpus=text_corpus(path, **fields), weight=weight, max_rows=max_rows)


def mixture(*parts, seed=0, passed=()):
    passed = (*passed, "source")
    return Corpus(path="", modality="text", parts=parts, seed=seed, passed_through=passed)


def write_lines(path, name, rows):
    path.write_text("".join(f"{name} {row}\n" for row in range(rows)))
    return str(path)


def rows_of(corpus, rows_per_shard=10):
    units = plan(corpus, rows_per_shard).units
    return pa.concat_tables([read_unit(corpus, unit) for unit in units])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10_000),
            st.floats(0.01, 100),
            st.none() | st.integers(1, 10_000),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_weights_are_shares(parts):
    rows = [count for count, _, _ in parts]
    named = [
        part(str(n), weight=weight, max_rows=most) for n, (_, weight, most) in enumerate(parts)
    ]
    found = quotas(named, rows)
    most = [min(count, cap or count) for count, _, cap in parts]
    assert all(1 <= one <= limit for one, limit in zip(found, most, strict=True))
    assert any(one == limit for one, limit in zip(found, most, strict=True))
    scale = min(limit / weight for limit, (_, weight, _) in zip(most, parts, strict=True))
    for one, (_, weight, _) in zip(found, parts, strict=True):
        assert abs(one - scale * weight) <= 1


def test_without_weights_every_row_up_to_the_cap():
    assert quotas([part("a"), part("b", max_rows=5), part("c", max_rows=50)], [7, 9, 9]) == [
        7,
        5,
        9,
    ]
    with pytest.raises(ValueError, match="sources b have no weight"):
        quotas([part("a", weight=1), part("b")], [1, 1])


def test_rows_carry_their_source_and_keep_their_columns(tmp_path):
    write_jsonl(
        tmp_path / "a.jsonl", [{"id": f"a{n}", "text": f"a {n}", "n": n} for n in range(23)]
    )
    columns = {"name": [f"b{n}" for n in range(17)], "caption": [f"b {n}" for n in range(17)]}
    write_parquet(tmp_path / "b.parquet", columns | {"n": pa.array(range(17), pa.int64())})
    corpus = mixture(
        part("first", tmp_path / "a.jsonl", passed_through=("n",)),
        part(
            "second",
            tmp_path / "b.parquet",
            id_column="name",
            text_column="caption",
            passed_through=("n",),
        ),
        passed=("n",),
    )
    table = rows_of(corpus)
    assert table.column("source").to_pylist() == ["first"] * 23 + ["second"] * 17
    assert table.column("id").to_pylist() == [f"a{n}" for n in range(23)] + columns["name"]
    assert table.column("n").to_pylist() == [*range(23), *range(17)]
    assert table.column("reject").null_count == 40


def test_caps_choose_by_seed_and_always_the_same(tmp_path):
    path = write_lines(tmp_path / "a.txt", "a", 100)
    other = write_lines(tmp_path / "b.txt", "b", 5)

    def chosen(most, seed):
        table = rows_of(mixture(part("a", path, max_rows=most), part("b", other), seed=seed))
        assert Counter(table.column("source").to_pylist()) == {"a": most, "b": 5}
        texts = table.column("text").to_pylist()
        assert len(set(texts)) == len(texts)
        return set(texts[:most])

    first = chosen(37, seed=0)
    assert first == chosen(37, seed=0)
    assert first != chosen(37, seed=1)
    # A higher cap keeps all whole units of the lower one.
    assert len(first - chosen(60, seed=0)) <= 7


def test_a_choice_is_as_good_as_any(tmp_path):
    """Each row is taken about as often as every other, over many seeds."""
    path, other = (write_lines(tmp_path / f"{name}.txt", name, 30) for name in "ab")
    counts = Counter()
    for seed in range(300):
        corpus = mixture(part("a", path, max_rows=12), part("b", other, max_rows=1), seed=seed)
        texts = rows_of(corpus, 5).column("text").to_pylist()
        counts.update(text for text in texts if text.startswith("a"))
    assert len(counts) == 30
    assert max(counts.values()) < 300 * 0.4 * 1.45
    assert min(counts.values()) > 300 * 0.4 * 0.6


def test_what_is_added_to_a_part_changes_little_of_the_choice(tmp_path):
    for number in range(20):
        write_lines(tmp_path / f"a{number:02d}.txt", f"a{number}", 10)
    write_lines(tmp_path / "b.txt", "b", 1)
    corpus = mixture(part("a", tmp_path / "a*.txt", max_rows=100), part("b", tmp_path / "b.txt"))
    before = {unit.key for unit in plan(corpus, 10).units}
    write_lines(tmp_path / "a20.txt", "new", 10)
    after = {unit.key for unit in plan(corpus, 10).units}
    assert len(before - after) <= 1


def test_files_are_remembered_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.file_facts._RACY_SECONDS", -1e9)
    for name in "ab":
        write_lines(tmp_path / f"{name}.txt", name, 20)
    corpus = mixture(part("a", tmp_path / "a.txt"), part("b", tmp_path / "b.txt"))
    cache = str(tmp_path / "plans" / "text.json")
    assert plan(corpus, 7, cache=cache) == plan(corpus, 7, cache=cache) == plan(corpus, 7)
    assert {path.name for path in (tmp_path / "plans").iterdir()} == {"text-a.json", "text-b.json"}


def test_embeddings_of_one_width_alone(tmp_path):
    for name, width in (("a", 8), ("b", 8), ("c", 4)):
        np.save(tmp_path / f"{name}.npy", unit_norm(6, width, seed=ord(name)))
    corpus = mixture(part("a", tmp_path / "a.npy"), part("b", tmp_path / "b.npy"))
    assert corpus.holds_embeddings
    assert plan(corpus, 4).dimension == 8
    assert len(rows_of(corpus, 4)) == 12
    wrong = mixture(part("a", tmp_path / "a.npy"), part("c", tmp_path / "c.npy"))
    with pytest.raises(ValueError, match=r"several widths, or of some parts alone \(a 8, c 4\)"):
        plan(wrong, 4)
    write_lines(tmp_path / "d.txt", "d", 3)
    mixed = mixture(part("a", tmp_path / "a.npy"), part("d", tmp_path / "d.txt"))
    with pytest.raises(ValueError, match="d has none"):
        plan(mixed, 4)


def test_its_identity_names_the_parts_without_credentials(tmp_path):
    corpus = mixture(part("a", "s3://key:secret@bucket/a.txt"), part("b", tmp_path / "b.txt"))
    said = str(corpus.identity) + corpus.shown
    assert "secret" not in said
    assert "the mixture of a, b" in said
    assert "unicode" not in text_corpus("x").identity  # what was made before stays valid


def test_columns_of_two_types_are_refused(tmp_path):
    for name, kind in (("a", pa.int64()), ("b", pa.int32()), ("c", pa.large_string())):
        values = pa.array([1, 2]).cast(kind)
        write_parquet(tmp_path / f"{name}.parquet", {"text": ["x", "y"], "n": values})
    (tmp_path / "d.csv").write_text("text,n\nz,3\n")

    def of(*names):
        parts = [part(one, next(tmp_path.glob(f"{one}.*")), passed_through=("n",)) for one in names]
        return mixture(*parts, passed=("n",))

    message = "column n is int64 in the source a and int32 in b; make them one type"
    with pytest.raises(ValueError, match=message):
        plan(of("a", "b"), 5)
    # Strings are strings, however wide their offsets are.
    assert rows_of(of("c", "d")).column("n").to_pylist() == ["1", "2", "3"]


def test_what_a_capped_unit_takes_is_what_was_compared(tmp_path):
    """Units that lose rows to others go on under another key, with the rows that were chosen."""
    for name in "ab":
        records = [{"id": f"r{row}", "text": f"{name} {row}"} for row in range(60)]
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    corpus = mixture(part("a", tmp_path / "a.jsonl"), part("b", tmp_path / "b.jsonl", max_rows=30))
    units = plan(corpus, 25).units
    hashes = {unit.key: row_hashes(read_unit(corpus, unit)) for unit in units}
    found = Duplicates.from_units(list(hashes.items()))
    renamed = [replace(unit, key=f"new-{unit.key}", planned_key=unit.key) for unit in units]
    keys = {unit.planned_key: unit.key for unit in renamed}
    tables = [read_unit(corpus, unit, duplicates=found.renamed(keys)) for unit in renamed]
    table = pa.concat_tables(tables)
    kept = table.filter(pc.is_null(table.column("reject"))).column("id").to_pylist()
    assert len(kept) == len(set(kept)) == 60
    assert reasons(table).count("duplicate_id") == 30


def test_no_row_is_lost_to_one_that_is_not_taken(tmp_path):
    (tmp_path / "a.txt").write_text("the same\n" * 90)
    capped = part("a", tmp_path / "a.txt", max_rows=5, unique_texts=True)
    table = rows_of(mixture(capped, part("b", write_lines(tmp_path / "b.txt", "b", 3))), 100)
    assert reasons(table) == [None, *["duplicate_text"] * 4, None, None, None]


def test_slices_that_occur_again_are_no_rejects_of_a_part_not_taken_whole(tmp_path):
    (tmp_path / "a.txt").write_text("the same\n" * 90)
    other = part("b", write_lines(tmp_path / "b.txt", "b", 3))
    for most, missing in ((5, 0), (None, 80)):
        planned = plan(mixture(part("a", tmp_path / "a.txt", max_rows=most), other), 10)
        assert sum(unit.rows for unit in planned.duplicate_units) == missing


def test_two_columns_of_one_file_are_two_sources(tmp_path):
    columns = {"short": [f"s {n}" for n in range(9)], "long": [f"l {n}" for n in range(9)]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    parts = [part(name, path, text_column=name) for name in ("short", "long")]
    ids = rows_of(mixture(*parts)).column("id").to_pylist()
    assert len(set(ids)) == 18
    again = rows_of(mixture(parts[0], part("again", path, text_column="short")))
    assert len(set(again.column("id").to_pylist())) == 9


def test_the_seed_chooses_within_one_unit_too(tmp_path):
    path, other = write_lines(tmp_path / "a.txt", "a", 50), write_lines(tmp_path / "b.txt", "b", 1)
    found = {
        tuple(
            rows_of(mixture(part("a", path, max_rows=5), part("b", other), seed=seed), 100)
            .column("text")
            .to_pylist()
        )
        for seed in range(4)
    }
    assert len(found) == 4


def test_errors_name_the_source(tmp_path):
    corpus = mixture(part("a", write_lines(tmp_path / "a.txt", "a", 3)), part("b", tmp_path / "no"))
    with pytest.raises(ValueError, match="the source b: there is no file or folder"):
        plan(corpus, 10)
