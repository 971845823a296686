"""Arrays within files: what they are, and their rows by range of bytes. Never unpickled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.storage import locations
from pipeline.storage.corpus import Corpus
from pipeline.storage.locations import listed, redact_url

_VERSIONS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array whose rows stand in a file one after the other, from the byte `offset` on.

    `what` says where for messages. `bfloat16` values, which numpy lacks, are uint16 in `dtype`.
    `decoded` gives the bytes that `offset` counts in where they are not those of the file.
    `refusal` says why its values are not to be read, "" where they are.
    """

    url: str
    what: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    fortran_order: bool = False
    bfloat16: bool = False
    decoded: Callable[[], bytes] | None = None
    refusal: str = ""

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def embeddings(self) -> bool:
        """Whether it could be embeddings: (rows, dimension) of floats."""
        floats = self.bfloat16 or (self.dtype.kind == "f" and self.dtype.itemsize <= 8)
        return floats and len(self.shape) == 2

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows [start, stop) in native byte order, bfloat16 widened to float32."""
        width = self.dtype.itemsize * math.prod(self.shape[1:])
        first, last = self.offset + start * width, self.offset + stop * width
        if self.decoded is None:
            data = locations.read_bytes(self.url, first, last)
        else:
            data = self.decoded()[first:last]
        values = np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])
        if self.bfloat16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(self.dtype.newbyteorder("="), copy=False)


def read_npy_header(file: Any, size: int, url: str, what: str) -> StoredArray:
    """Read the header of a .npy of `size` bytes that begins where `file` stands.

    The array's `offset` counts from there.

    Raises:
        ValueError: if it is none, or of another size.
    """
    begin = int(file.tell())
    try:
        version = np.lib.format.read_magic(file)
        if version not in _VERSIONS:
            raise ValueError(f"version {version} of the format is not read")
        shape, fortran_order, dtype = _VERSIONS[version](file)
    except (ValueError, EOFError) as error:
        line = (str(error).splitlines() or ["damaged header"])[0]
        raise ValueError(f"{what} is not a readable .npy: {line}") from error
    offset = int(file.tell()) - begin
    array = StoredArray(
        url=url,
        what=what,
        shape=shape,
        dtype=dtype,
        offset=offset,
        fortran_order=fortran_order,
        refusal=f"{what} holds Python objects, which are never loaded" if dtype.hasobject else "",
    )
    if min(shape, default=0) < 0 or (size != offset + array.bytes and not dtype.hasobject):
        raise ValueError(f"{what} is cut short: its size does not fit its header")
    return array


def npy_array(url: str) -> StoredArray:
    """Return the array of a .npy file; raises ValueError as `read_npy_header`."""
    with locations.open_for_reading(url) as file:
        size = int(file.seek(0, 2))
        file.seek(0)
        return read_npy_header(file, size, url, redact_url(url))


def chosen_embeddings(corpus: Corpus, arrays: Mapping[str, StoredArray], url: str) -> StoredArray:
    """Return the embeddings among a file's arrays: those named, else the only that can be.

    Without `embedding_column` an array called embedding, embeddings or as the modality is taken.

    Raises:
        ValueError: if there is none, or several.
    """
    named = corpus.embedding_column
    if named is not None:
        if named not in arrays:
            raise ValueError(
                f"{redact_url(url)} has no array {named}; it has {listed(list(arrays))}"
            )
        return arrays[named]
    for name in ("embedding", "embeddings", corpus.modality):
        if name in arrays:
            return arrays[name]
    fitting = [name for name, array in arrays.items() if array.embeddings]
    if len(fitting) != 1:
        has = "several arrays" if fitting else "no array"
        raise ValueError(
            f"{redact_url(url)} has {has} that could be the embeddings (2-d, of floats); it has "
            f"{listed(list(arrays))}; name one by {corpus.modality}.embedding_column"
        )
    return arrays[fitting[0]]


def chosen_ids(corpus: Corpus, arrays: Mapping[str, StoredArray], url: str) -> StoredArray | None:
    """Return the ids among a file's arrays: those named, else `id` or `ids`, None without any.

    Raises:
        ValueError: if an array is named that is not there.
    """
    if corpus.id_column != "id":
        if corpus.id_column not in arrays:
            raise ValueError(
                f"{redact_url(url)} has no array {corpus.id_column}; it has {listed(list(arrays))}"
            )
        return arrays[corpus.id_column]
    return arrays.get("id", arrays.get("ids"))


def require_embeddings(array: StoredArray) -> None:
    """Raise ValueError unless an array is (rows, dimension) of floats in C order, with a row."""
    if array.refusal:
        raise ValueError(array.refusal)
    if not array.embeddings:
        raise ValueError(
            f"{array.what} holds {array.dtype} of shape {array.shape}; embeddings are a "
            "2-d array (rows, dimension) of float16, float32 or float64"
        )
    if array.fortran_order:
        raise ValueError(
            f"{array.what} is in Fortran order; save numpy.ascontiguousarray of it instead"
        )
    if not array.bytes:
        raise ValueError(f"{array.what} has no row")


def require_ids(array: StoredArray) -> None:
    """Raise ValueError unless an array is (rows,) of strings or integers."""
    if array.refusal:
        raise ValueError(array.refusal)
    if len(array.shape) != 1 or array.dtype.kind not in "USiu" or array.bfloat16:
        raise ValueError(
            f"{array.what} holds {array.dtype} of shape {array.shape}; ids are a 1-d array of "
            "strings or integers"
        )
