import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.columns import (
    ID_BYTES,
    Rejects,
    binary_column,
    blank,
    mark_unfit_text,
    safe_ids,
)

SIGNS = st.sampled_from([*"ab ./\\\t\n\r\x00\x0b\x1b\x1f\x7f\x80\xa0é😀\u2028\u3000", ".."])
STRINGS = st.lists(st.none() | st.lists(SIGNS, max_size=6).map("".join), max_size=8)


@st.composite
def columns(draw: st.DrawFn) -> pa.Array | pa.ChunkedArray:
    """Strings as one array, a slice of one, or chunks."""
    chunks = draw(st.lists(STRINGS, min_size=1, max_size=3))
    arrays = [pa.array(["lead\x00", *chunk], pa.string()).slice(1) for chunk in chunks]
    return arrays[0] if len(arrays) == 1 else pa.chunked_array(arrays)


def reasons(rejects: Rejects) -> list[str | None]:
    return rejects.to_arrow().to_pylist()


@given(columns(), st.integers(1, 12))
def test_captions_are_marked_one_by_one_as_all_together(column, limit):
    rejects = Rejects(len(column))
    mark_unfit_text(column, rejects, limit)

    def reason(text: str | None) -> str | None:
        if text is None:
            return None
        if len(text.encode()) > limit:
            return "too_long"
        return (
            "control_characters" if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text) else None
        )

    assert reasons(rejects) == [reason(text) for text in column.to_pylist()]


@given(columns())
def test_ids_are_marked_one_by_one_as_all_together(column):
    rejects = Rejects(len(column))
    assert safe_ids(column, rejects).to_pylist() == column.to_pylist()

    def reason(name: str | None) -> str | None:
        if name is None:
            return None
        segments = re.split(r"[/\\]", name)
        control = re.search(r"[\x00-\x1f\x7f]", name)
        out = ".." in segments or (len(segments) > 1 and not segments[0])
        return "unsafe_id" if control or out else None

    assert reasons(rejects) == [reason(name) for name in column.to_pylist()]


def test_a_long_id_is_cut():
    rejects = Rejects(3)
    ids = safe_ids(pa.array(["x" * ID_BYTES, "é" * ID_BYTES * 3, None]), rejects)
    assert reasons(rejects) == [None, "unsafe_id", None]
    assert ids.to_pylist() == ["x" * ID_BYTES, "é" * ID_BYTES, None]


@given(columns())
def test_blank_is_what_trimming_leaves_nothing_of(column):
    trimmed = pc.utf8_trim_whitespace(column).to_pylist()
    assert blank(column).tolist() == [not one for one in trimmed]


def test_an_empty_column():
    for column in (pa.array([], pa.string()), pa.chunked_array([], pa.string())):
        rejects = Rejects(0)
        mark_unfit_text(column, rejects, 1)
        assert len(safe_ids(column, rejects)) == 0
        assert blank(column).shape == (0,)


def test_bytes_under_a_null_are_not_looked_at():
    whole = pa.array(["a\x00", "b"])
    hidden = pa.Array.from_buffers(
        pa.string(), 2, [pa.py_buffer(np.packbits([0, 1], bitorder="little")), *whole.buffers()[1:]]
    )
    rejects = Rejects(2)
    mark_unfit_text(hidden, rejects, 10)
    assert reasons(rejects) == [None, None]


@given(st.lists(st.none() | st.binary(max_size=5), max_size=20))
def test_large_values_as_one_column(values: list[bytes | None]):
    column = binary_column([None if one is None else memoryview(one) for one in values])
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.binary()))
