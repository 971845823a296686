"""Arrays as bytes: `.npy`, and pickles that every numpy reads."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def npy_header(shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """Return what stands before the values in a `.npy` file of version 1.0."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
    said = {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, said)
    return header.getvalue()


def npy_bytes(values: npt.NDArray[Any]) -> bytes:
    """Return an array as a `.npy` file; it can be memory-mapped."""
    return b"".join((npy_header(values.shape, values.dtype), _little_endian(values).data))


def pickled_rows(ids: Sequence[str], embeddings: npt.NDArray[Any]) -> bytes:
    """Return a pickled list of {"id": str, "embed": float32 (d,)}, arrays that can be written to.

    It names nothing but `numpy.ndarray`, which numpy 1 and 2 both have; both would themselves name
    functions that the other lacks.
    """
    sink = io.BytesIO()
    _Pickler(sink, protocol=5).dump(
        [
            {"id": identifier, "embed": _Row(embedding.astype("<f4"))}
            for identifier, embedding in zip(ids, embeddings, strict=True)
        ]
    )
    return sink.getvalue()


class _Row:
    """An embedding on its way into a pickle."""

    __slots__ = ("values",)

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self.values = values


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Return how an array is made again: `numpy.ndarray(shape, dtype, buffer)`."""
        if isinstance(obj, _Row):
            return np.ndarray, (obj.values.shape, "<f4", bytearray(obj.values.tobytes()))
        return NotImplemented


def _little_endian(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
