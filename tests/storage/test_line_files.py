import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import plan, read_unit
from tests.storage.samples import read_all, reasons, text_corpus, write_jsonl


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["id", "text", "more"]), inner, max_size=3)
            ),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_no_line_of_any_json_is_lost(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    first = json.dumps({"id": "first", "text": "x", "more": "y"})
    path.write_text(first + "\n" + "".join(json.dumps(value) + "\n" for value in values))
    table = read_all(text_corpus(path, passed_through=("more",)))
    assert len(table) == 1 + len(values)
    good = [row for row in table.to_pylist() if row["reject"] is None]
    assert len({row["id"] for row in good}) == len(good)
    assert all(isinstance(row["text"], str) for row in good)


def test_json_lines(tmp_path):
    lines = [
        b'{"id": 7, "text": "one", "more": {"a": 1}}',
        b'{"id": "b", "text": "two"}',
        b'{"id": "7", "text": "again"}',
        b'{"text": "x"}',
        b'{"id": null, "text": "x"}',
        b'{"id": " ", "text": "x"}',
        b'{"id": 1.5, "text": "x"}',
        b'{"id": true, "text": "x"}',
        b'{"id": "c", "text": 3}',
        b'{"id": "d", "text": null}',
        b'{"id": "e"}',
        b'{"id": "f", "text": " "}',
        b'{"id": "g", "text": "\\ud800"}',
        b'{"id": "h", "text": "\xff"}',
        b'{"id": "i", "text": "x", "more": 3}',
        b'["id", "text"]',
        b"{",
        b"",
        b"[" * 100_000,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    table = read_all(text_corpus(tmp_path, passed_through=("more",)))
    assert reasons(table) == [
        None,
        None,
        "duplicate_id",
        *["missing_id"] * 3,
        *["malformed"] * 5,
        "empty",
        "not_utf8",
        "not_utf8",
        *["malformed"] * 5,
    ]
    assert table.column("id").to_pylist()[:2] == ["7", "b"]
    assert table.column("more").to_pylist()[:2] == [{"a": 1}, None]
    contents = table.column("content").to_pylist()
    assert contents[:2] == [None, None]
    assert contents[2:-1] == lines[2:-1]
    assert contents[-1] == lines[-1][: 64 * 1024]


def test_json_lines_without_ids(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    corpus = text_corpus(tmp_path)
    (unit,) = plan(corpus, 10).units
    assert read_unit(corpus, unit).column("id").to_pylist() == [
        f"{unit.digest[:16]}-{row:06d}" for row in range(2)
    ]


def test_json_lines_with_embeddings(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"id": 1, "e": [3, 4.0], "text": "x"}\n{"id": 2, "e": [1]}\n{"id": 3, "e": [NaN, 1]}\n'
        '{"id": 4, "e": null}\n{"id": 5, "e": ["1", 2]}\n{"id": 6, "e": 1}\n{"id": 7, "e": [0, 0]}'
        '\n{"id": 8, "e": [1, null]}\n{"id": 9, "e": [0, 1], "text": 1}\n'
    )
    table = read_all(text_corpus(tmp_path, embedding_column="e"))
    assert reasons(table) == [
        None,
        "wrong_dimension",
        "not_finite",
        "not_finite",
        "malformed",
        "malformed",
        "zero_embedding",
        "not_finite",
        "malformed",
    ]
    np.testing.assert_allclose(table.column("embedding")[0].as_py(), [0.6, 0.8], rtol=1e-6)
    assert table.column("text")[0].as_py() == "x"


def test_a_value_nested_deeply(tmp_path):
    deep = "[" * 900 + "]" * 900
    deeper = '{"a":' * 50_000 + "1" + "}" * 50_000
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x", "more": "y"}\n'
        f'{{"text": "x", "more": {deep}}}\n'
        f'{{"text": {deep}}}\n{{"text": "x", "more": {deeper}}}\n'
    )
    table = read_all(text_corpus(tmp_path, passed_through=("more",)))
    assert reasons(table) == [None, "malformed", "malformed", "malformed"]
    # Such a value decides no column's type either.
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "x", "more": {deep}}}\n' + '{"text": "y", "more": [[1]]}\n' * 2
    )
    table = read_all(text_corpus(tmp_path, passed_through=("more",)))
    assert reasons(table) == ["malformed", None, None]
    assert table.column("more").to_pylist() == [None, [[1]], [[1]]]
