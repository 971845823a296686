"""Raw columns of a slice, and the checks that turn them into usable ones, vectorised.

A row that fails a check is marked in `Rejects` and stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import RejectReason

CONTENT_BYTES = 64 * 2**10
"""A quarantined row keeps this much of its raw content."""

_REASONS = tuple(RejectReason)
_GOOD = -1
_BLOCK_ROWS = 2048

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
    lengths = pc.binary_length(pc.utf8_trim_whitespace(strings))
    return np.asarray(pc.equal(pc.fill_null(lengths, 0), 0).to_numpy(zero_copy_only=False), bool)


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


def mark_repeated(ids: Any, rejects: Rejects) -> None:
    """Mark good rows whose id (n,) an earlier good row has."""
    rows = np.flatnonzero(rejects.good)
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    codes = ids.take(pa.array(rows)).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(len(rows), dtype=np.bool_)
    repeated[first] = False
    marked = np.zeros(len(ids), dtype=np.bool_)
    marked[rows[repeated]] = True
    rejects.mark(marked, RejectReason.DUPLICATE_ID)


def unit_rows(column: Any, rows: int, dimension: int, rejects: Rejects) -> npt.NDArray[np.float32]:
    """Return embeddings (n, d) L2-normalised in float64, as float32; unusable rows are zeros.

    Null rows, NaN and infinities are marked not finite, other widths wrong, zero norms zero.
    `column` is an Arrow list column or an array (n, d').
    """
    normalised = np.zeros((rows, dimension), dtype=np.float32)
    for start, fits, values in _fitting(column, dimension, rejects):
        places = start + np.flatnonzero(fits)
        for begin in range(0, len(places), _BLOCK_ROWS):
            chosen = places[begin : begin + _BLOCK_ROWS]
            block = values[begin : begin + _BLOCK_ROWS].astype(np.float64)
            peaks = np.abs(block).max(axis=1, initial=0.0)
            usable = np.isfinite(peaks) & (peaks > 0)
            _mark_at(rejects, chosen[~np.isfinite(peaks)], rows, RejectReason.NOT_FINITE)
            _mark_at(rejects, chosen[peaks == 0], rows, RejectReason.ZERO_EMBEDDING)
            block[~usable] = 0.0
            # Divided by the peak first, so that no square overflows or vanishes.
            block /= np.where(usable, peaks, 1.0)[:, None]
            norms = np.sqrt(np.einsum("nd,nd->n", block, block))
            block /= np.where(usable, norms, 1.0)[:, None]
            normalised[chosen] = block
    return normalised


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
