"""Raw columns of a slice, and the checks that turn them into usable ones, vectorised.

A row that fails a check is marked in `Rejects` and stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import RejectReason
from pipeline.storage.norms import Norms

CONTENT_BYTES = 64 * 2**10
"""A quarantined row keeps this much of its raw content."""

_REASONS = tuple(RejectReason)
_GOOD = -1
_LEAST_SQUARE, _MOST_SQUARE = 1e-200, 1e200
_BLOCK_ROWS = 512
_DELETE = 0x7F

ID_BYTES = 1024
"""An id of more bytes is unsafe: no path may be that long everywhere."""

_PARENT_FOLDER = r"(?:^|[/\\])\.\.(?:[/\\]|$)"

Mask = npt.NDArray[np.bool_]


class Rejects:
    """Which rows of a slice cannot be used and why; the first reason given to a row stays."""

    def __init__(self, rows: int) -> None:
        self._codes = np.full(rows, _GOOD, dtype=np.int8)

    def mark(self, rows: Mask, reason: RejectReason) -> None:
        """Give `reason` to the rows where the mask (n,) is true and no reason is given yet."""
        self._codes[rows & (self._codes == _GOOD)] = _REASONS.index(reason)

    def mark_row(self, row: int, reason: RejectReason) -> None:
        """Give `reason` to one row if it has none yet."""
        if self._codes[row] == _GOOD:
            self._codes[row] = _REASONS.index(reason)

    @property
    def good(self) -> Mask:
        """Mask (n,) of the rows without a reason."""
        good: Mask = self._codes == _GOOD
        return good

    def taken(self, rows: npt.NDArray[np.int64]) -> Rejects:
        """Return those of some rows (m,)."""
        found = Rejects(len(rows))
        found._codes[:] = self._codes[rows]
        return found

    def to_arrow(self) -> pa.Array:
        """Return the reasons as strings (n,), null for good rows."""
        codes = pa.array(self._codes, mask=self.good)
        return pa.array([str(reason) for reason in _REASONS], pa.string()).take(codes)


@dataclass(kw_only=True)
class RawRows:
    """The columns of a slice as a file has them, before any check; n rows each.

    `ids` are text, bytes or integers, None if the rows are not named; `text` is text or bytes;
    `image` is bytes; `embedding` is an Arrow list column or an array (n, d). `content` returns a
    row's raw bytes for the quarantine. `rejects` holds what the parser could not make out.
    """

    rejects: Rejects
    content: Callable[[int], bytes | None]
    ids: Any = None
    text: Any = None
    image: Any = None
    embedding: Any = None
    passed_through: dict[str, Any] = field(default_factory=dict)


def binary_column(values: Sequence[bytes | memoryview | None]) -> pa.Array:
    """Return large values (n,), such as images, as binary; in one copy of exactly their size.

    Arrow's own builder doubles what it holds, and so holds up to three times as much.
    """
    sizes = [0 if value is None else len(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    assert offsets[-1] < 2**31, "a unit of images is smaller"
    data = b"".join(value for value in values if value is not None)
    valid = pa.array([value is not None for value in values], pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def decoded_text(column: Any, rejects: Rejects) -> Any:
    """Return a text or binary column as strings; rows that are not UTF-8 become null, marked."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    raw = as_bytes(column)
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        values: list[str | None] = []
        for row, value in enumerate(raw.to_pylist()):
            try:
                values.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError:
                values.append(None)
                rejects.mark_row(row, RejectReason.NOT_UTF8)
        return pa.array(values, pa.string())


def as_bytes(column: Any) -> Any:
    """Return a string or binary column as binary, without looking at the bytes."""
    if pa.types.is_null(column.type):
        return column.cast(pa.binary())
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    elif pa.types.is_string_view(column.type):
        column = column.cast(pa.binary_view())
    return column.cast(pa.binary())


def mark_unfit_text(text: Any, rejects: Rejects, max_bytes: int) -> None:
    """Mark strings (n,) of more than `max_bytes` bytes or with control characters."""
    rejects.mark(_longer(text, max_bytes), RejectReason.TOO_LONG)
    rejects.mark(_with_control(text, allowed="\t\n\r"), RejectReason.CONTROL_CHARACTERS)


def safe_ids(ids: Any, rejects: Rejects) -> Any:
    """Return ids (n,), overlong ones cut; those that could do harm as a file's name are marked.

    Harm: control characters, a path that leaves its folder (absolute or by `..`), no end.
    """
    unsafe = _with_control(ids)
    for sign in "/\\":
        unsafe |= _as_mask(pc.starts_with(ids, sign))
    # A look at the bytes first: the pattern costs as much as reading the ids does.
    dots = (values == ord(".") for _, _, values in _bytes_of(ids))
    if any((dot[1:] & dot[:-1]).any() for dot in dots):
        unsafe |= _as_mask(pc.match_substring_regex(ids, _PARENT_FOLDER))
    longer = _longer(ids, ID_BYTES)
    if longer.any():
        unsafe |= longer
        ids = pc.utf8_slice_codeunits(ids, 0, ID_BYTES)
    rejects.mark(unsafe, RejectReason.UNSAFE_ID)
    return ids


def _longer(strings: Any, limit: int) -> Mask:
    return _as_mask(pc.greater(pc.binary_length(strings), limit))


def _as_mask(booleans: Any) -> Mask:
    """Return Arrow booleans (n,) as a mask, false where they are null."""
    return np.asarray(pc.fill_null(booleans, False).to_numpy(zero_copy_only=False), bool)


def _with_control(strings: Any, allowed: str = "") -> Mask:
    """Return the mask (n,) of strings that hold a C0 control character or DEL.

    Looks at the bytes of all strings end to end, which costs a twentieth of a pattern: no byte of
    a longer UTF-8 character is one of these.
    """
    found = np.zeros(len(strings), dtype=np.bool_)
    for start, ends, values in _bytes_of(strings):
        places = np.flatnonzero(values == _DELETE)
        if values.min(initial=_DELETE) < ord(" "):
            low = np.flatnonzero(values < ord(" "))
            for sign in allowed:
                low = low[values[low] != ord(sign)]
            places = np.concatenate([places, low])
        found[start + np.searchsorted(ends, places, side="right") - 1] = True
    return found & _as_mask(pc.is_valid(strings))


def _bytes_of(
    strings: Any,
) -> Iterator[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.uint8]]]:
    """Yield (first row, where each string begins and the last ends, all bytes) by chunk."""
    start = 0
    for chunk in strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]:
        _, offsets, data = chunk.buffers()
        if len(chunk) and data is not None:
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            yield start, ends - ends[0], np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
        start += len(chunk)


def checked_ids(column: Any, rejects: Rejects) -> Any:
    """Return ids (n,) as strings; null or blank ones are marked missing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        ids = column.cast(pa.string())
    else:
        ids = decoded_text(column, rejects)
    rejects.mark(blank(ids), RejectReason.MISSING_ID)
    return ids


def blank(strings: Any) -> Mask:
    """Return the mask (n,) of strings that are null, empty or only whitespace."""
    found = np.ones(len(strings), dtype=np.bool_)
    for start, ends, values in _bytes_of(strings):
        full = np.flatnonzero(ends[1:] > ends[:-1])
        first = values[ends[full]]
        found[start + full[(first > ord(" ")) & (first < _DELETE)]] = False
    found |= _as_mask(pc.is_null(strings))
    # Only the few that do not begin with a visible ASCII character are worth a closer look.
    trimmed = pc.utf8_trim_whitespace(strings.filter(pa.array(found)))
    found[found] = _as_mask(pc.equal(pc.fill_null(pc.binary_length(trimmed), 0), 0))
    return found


def mark_broken_text(column: Any, rejects: Rejects) -> None:
    """Mark the rows of a passed-through column of any type that hold invalid UTF-8."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(len(column)):
            try:
                # A slice shares its parent's children, so it is copied out before it is checked.
                column.slice(row, 1).take(pa.array([0])).validate(full=True)
            except pa.ArrowInvalid:
                rejects.mark_row(row, RejectReason.NOT_UTF8)


def mark_repeated(values: Any, rejects: Rejects, reason: RejectReason) -> None:
    """Mark good rows whose value (n,), an id or a caption, an earlier good row has; not nulls."""
    rows = np.flatnonzero(rejects.good & _as_mask(pc.is_valid(values)))
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kept = values if len(rows) == len(values) else values.take(pa.array(rows))
    encoded = kept.dictionary_encode()
    if len(encoded.dictionary) == len(rows):
        return
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(len(rows), dtype=np.bool_)
    repeated[first] = False
    marked = np.zeros(len(values), dtype=np.bool_)
    marked[rows[repeated]] = True
    rejects.mark(marked, reason)


def unit_rows(
    column: Any, rows: int, dimension: int, rejects: Rejects, norms: Norms | None = None
) -> npt.NDArray[np.float32]:
    """Return embeddings (n, d) L2-normalised in float64, as float32; unusable rows are zeros.

    Null rows, NaN and infinities are marked not finite, other widths wrong, zero norms zero.
    `column` is an Arrow list column or an array (n, d'). `norms` counts those of usable rows.
    """
    normalised = np.zeros((rows, dimension), dtype=np.float32)
    for start, fits, values in _fitting(column, dimension, rejects):
        places = start + np.flatnonzero(fits)
        for begin in range(0, len(places), _BLOCK_ROWS):
            chosen = places[begin : begin + _BLOCK_ROWS]
            block = values[begin : begin + _BLOCK_ROWS].astype(np.float64)
            squares = np.einsum("nd,nd->n", block, block)
            # All but a few corpora are like this, and read several times: so no pass too many.
            if squares.min() > _LEAST_SQUARE and squares.max() < _MOST_SQUARE:
                found = np.sqrt(squares)
                block /= found[:, None]
            else:
                found = _normalise(block, chosen, rows, rejects)
            if norms is not None:
                norms.add(found)
            normalised[_span(chosen)] = block
    return normalised


def _normalise(
    block: npt.NDArray[np.float64], chosen: npt.NDArray[Any], rows: int, rejects: Rejects
) -> npt.NDArray[np.float64]:
    """Normalise a block (m, d) of any values in place; mark what cannot be, and make it zero.

    Returns the norms of the others.
    """
    peaks = np.abs(block).max(axis=1, initial=0.0)
    usable = np.isfinite(peaks) & (peaks > 0)
    _mark_at(rejects, chosen[~np.isfinite(peaks)], rows, RejectReason.NOT_FINITE)
    _mark_at(rejects, chosen[peaks == 0], rows, RejectReason.ZERO_EMBEDDING)
    block[~usable] = 0.0
    # Divided by the peak first, so that no square overflows or vanishes.
    block /= np.where(usable, peaks, 1.0)[:, None]
    norms = np.sqrt(np.einsum("nd,nd->n", block, block))
    block /= np.where(usable, norms, 1.0)[:, None]
    with np.errstate(over="ignore"):
        return np.minimum(peaks[usable] * norms[usable], np.finfo(np.float64).max)


def _span(places: npt.NDArray[Any]) -> Any:
    """Return ascending places as a slice where they leave none out: copying is faster then."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first == len(places) - 1 else places


def _fitting(
    column: Any, dimension: int, rejects: Rejects
) -> Iterator[tuple[int, Mask, npt.NDArray[Any]]]:
    """Yield (first row, mask of rows that have d values, their values (m, d)) by chunk."""
    if isinstance(column, np.ndarray):
        fits = np.full(len(column), column.shape[1] == dimension)
        rejects.mark(~fits, RejectReason.WRONG_DIMENSION)
        if column.shape[1] == dimension:
            yield 0, fits, column
        return
    start = 0
    total = len(column)
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        here = slice(start, start + len(chunk))
        widths = pc.fill_null(pc.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
        fits = widths == dimension
        if not fits.all():
            mask = np.zeros(total, dtype=np.bool_)
            mask[here] = widths < 0
            rejects.mark(mask, RejectReason.NOT_FINITE)
            mask[here] = (widths >= 0) & ~fits
            rejects.mark(mask, RejectReason.WRONG_DIMENSION)
            chunk = chunk.filter(pa.array(fits))
        flat = chunk.flatten()
        if flat.null_count:
            flat = pc.fill_null(flat.cast(pa.float64()), float("nan"))
        yield start, fits, flat.to_numpy(zero_copy_only=False).reshape(-1, dimension)
        start += len(widths)


def _mark_at(rejects: Rejects, places: npt.NDArray[Any], rows: int, reason: RejectReason) -> None:
    if len(places):
        mask = np.zeros(rows, dtype=np.bool_)
        mask[places] = True
        rejects.mark(mask, reason)
