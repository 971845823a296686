import csv
import io

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import plan, read_unit
from tests.storage.samples import read_all, reasons, text_corpus


def write_csv(path, rows, header=("id", "text"), **options):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return str(path)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=9), min_size=1),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 5),
)
def test_what_was_written_is_read(tmp_path_factory, texts, ending, rows_per_shard):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [(row, f'{text}, "said"\nand') for row, text in enumerate(texts)]
    write_csv(path, rows, lineterminator=ending)
    table = read_all(text_corpus(path), rows_per_shard)
    assert reasons(table) == [None] * len(texts)
    assert table.column("text").to_pylist() == [text for _, text in rows]
    assert table.column("id").to_pylist() == [str(row) for row, _ in rows]


def test_a_quote_too_many_costs_its_own_line_alone(tmp_path):
    lines = [
        b"text,id,more",
        b"ok,1,a",
        b'"open,2,b',
        b"fine,3,c",
        b"",
        b'"two',
        b'lines",4,d',
        b'x"y,5,e',
        b'"a"b,6,f',
        b"\xff,7,g",
        b"short",
        b"long,8,h,i",
        b"last,9,",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    for rows_per_shard in (1, 2, 3, 100):
        table = read_all(text_corpus(tmp_path, passed_through=("more",)), rows_per_shard)
        assert list(zip(table["text"].to_pylist(), reasons(table), strict=True)) == [
            ("ok", None),
            (None, "malformed"),
            ("fine", None),
            ("two\nlines", None),
            ('x"y', None),
            (None, "malformed"),
            (None, "not_utf8"),
            (None, "malformed"),
            (None, "malformed"),
            ("last", None),
        ]
        assert table["more"].to_pylist() == ["a", None, "c", "d", "e", None, "g", None, None, ""]
        assert table["content"].to_pylist()[1] == b'"open,2,b\n'
        assert table["content"].to_pylist()[7] == b"short\n"


def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path):
    rows = [f"caption {row},{row}\n" for row in range(60_000)]
    rows[20_000] = '"caption,x\n'
    (tmp_path / "a.csv").write_text("text,id\n" + "".join(rows))
    table = read_all(text_corpus(tmp_path), 30_000)
    assert len(table) == 60_000
    assert [row for row, reason in enumerate(reasons(table)) if reason] == [20_000]


@pytest.mark.parametrize("start", ["\ufeff", "\n\n", ""])
def test_the_header_is_the_first_record(tmp_path, start):
    (tmp_path / "a.csv").write_text(f'{start}"id",text\n1,x\n', encoding="utf-8")
    table = read_all(text_corpus(tmp_path))
    assert table.select(["id", "text"]).to_pylist() == [{"id": "1", "text": "x"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no header"),
        ("\n\n", "no header"),
        ("text,id\n", "no row below its header"),
        ("text,id\n\n\n", "no row below its header"),
        ("text,text\nx,y\n", "two columns alike"),
        ("caption,id\nx,y\n", "no column 'text'; it has 'caption' and 'id'|no column text"),
        ("text;id\nx;y\n", "has semicolons between its columns"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        plan(text_corpus(tmp_path), 10)


def test_another_header_makes_other_units(tmp_path):
    path = tmp_path / "a.csv"
    keys = []
    for header in ("text,other", "other,text"):
        path.write_text(f"{header}\nx,y\n")
        keys.append(plan(text_corpus(path), 10).units[0].key)
    assert keys[0] != keys[1]


def test_a_file_that_changed_after_planning(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,id\nx,1\ny,2\n")
    unit = plan(text_corpus(path), 10).units[0]
    for changed in ("text,id\nx,1\nz,2\n", "id,text\nx,1\ny,2\n", "text,id\nx,1\n"):
        path.write_text(changed)
        with pytest.raises(ValueError, match="was changed during the run"):
            read_unit(text_corpus(path), unit)


def test_tabs_and_compression(tmp_path):
    rows = [(f"r{row}", f'caption\t{row} "q"') for row in range(50)]
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter="\t").writerows([("id", "text"), *rows])
    with pa.CompressedOutputStream(str(tmp_path / "a.tsv.zst"), "zstd") as file:
        file.write(sink.getvalue().encode())
    table = read_all(text_corpus(tmp_path), 7)
    assert list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)) == rows


def test_files_joined_end_to_end(tmp_path):
    """A byte order mark inside is content; what is planned is what is read."""
    parts = [f'\ufeff"text",id\n"a, {n}",{n}\n' for n in range(2)]
    (tmp_path / "a.csv").write_text("".join(parts), encoding="utf-8")
    whole = read_all(text_corpus(tmp_path), 100)
    for rows_per_shard in (1, 2):
        table = read_all(text_corpus(tmp_path), rows_per_shard)
        assert table.column("text").equals(whole.column("text"))
