"""Pairs of embeddings with their captions, read from an .npz or from Parquet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from pipeline.evaluation.pairs import unit_rows
from pipeline.storage import locations

_NAMES = ("image", "text", "caption")


@dataclass(frozen=True)
class CaptionedPairs:
    """Paired unit rows `image` and `text` (n, d), the caption of each, and where they come from."""

    path: str
    image: Tensor
    text: Tensor
    captions: list[str]

    def digest(self) -> str:
        """Return the sha256 (hex) of the embeddings and captions."""
        found = hashlib.sha256()
        for tensor in (self.image, self.text):
            found.update(tensor.numpy().tobytes())
        for caption in self.captions:
            found.update(caption.encode() + b"\n")
        return found.hexdigest()


def read_captioned_pairs(path: str) -> CaptionedPairs:
    """Read `image` (n, d), `text` (n, d) and `caption` (n) from a file; rows are L2-normalised.

    An .npz has arrays of floats and one of strings, Parquet (local or by URL) columns of lists of
    floats and of strings.

    Raises:
        ValueError: when the file, a column or its values cannot be used.
    """
    shown = locations.redact_url(path)
    found = _parquet(path, shown) if path.endswith(".parquet") else _npz(path, shown)
    image, text = (unit_rows(found[name], name, shown) for name in ("image", "text"))
    captions = [str(caption) for caption in found["caption"].tolist()]
    if image.shape != text.shape or len(captions) != len(image):
        raise ValueError(
            f"{shown}: image has shape {tuple(image.shape)}, text {tuple(text.shape)}, and there "
            f"are {len(captions)} captions; all need equal rows, and both equal widths"
        )
    empty = sum(not caption.strip() for caption in captions)
    if empty:
        raise ValueError(f"{shown}: {empty} captions are empty; remove these rows")
    return CaptionedPairs(shown, image, text, captions)


def _npz(path: str, shown: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in _NAMES if name in arrays}
            there = ", ".join(arrays.files) or "none"
    except OSError as error:
        raise ValueError(f"cannot read {shown}: {error.strerror or error}") from None
    except (BadZipFile, EOFError, ValueError, AttributeError, TypeError):
        raise ValueError(
            f"{shown} is not an .npz archive of arrays of floats and of strings (no object arrays: "
            "save captions as np.array(captions, dtype=str))"
        ) from None
    _check_names(found, there, shown)
    if found["caption"].dtype.kind != "U" or found["caption"].ndim != 1:
        raise ValueError(
            f"{shown}: caption must be one array of strings, not {found['caption'].dtype} of shape "
            f"{found['caption'].shape}; save it as np.array(captions, dtype=str)"
        )
    return found


def _parquet(path: str, shown: str) -> dict[str, np.ndarray]:
    try:
        with locations.open_for_reading(path) as file:
            parquet = pq.ParquetFile(file)
            there = parquet.schema_arrow.names
            _check_names(dict.fromkeys(there), ", ".join(there), shown)
            table = parquet.read(columns=list(_NAMES))
    except FileNotFoundError:
        raise ValueError(f"there is no {shown}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{shown} is not readable as Parquet: {error}") from None
    found = {name: _rows(table.column(name), name, shown) for name in ("image", "text")}
    captions = table.column("caption")
    if not (pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type)):
        raise ValueError(f"{shown}: caption must be a column of strings, not {captions.type}")
    if captions.null_count:
        raise ValueError(f"{shown}: {captions.null_count} captions are missing; remove these rows")
    return {**found, "caption": np.array(captions.to_pylist(), dtype=object)}


def _rows(column: pa.ChunkedArray, name: str, shown: str) -> np.ndarray:
    """Return a column of lists of floats as an array (n, d)."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)):
        raise ValueError(f"{shown}: {name} must be a column of lists of floats, not {kind}")
    combined = column.combine_chunks()
    values = combined.flatten().to_numpy(zero_copy_only=False, writable=True)  # as torch wants it
    rows = len(combined)
    widths = {len(values) // rows} if rows else {0}
    if lists and rows:
        widths = set(combined.value_lengths().to_pylist())
    if column.null_count or len(widths) != 1 or None in widths:
        raise ValueError(f"{shown}: {name} has rows of different widths, or missing ones")
    return values.reshape(rows, widths.pop())


def _check_names(found: dict[str, object], there: str, shown: str) -> None:
    missing = [name for name in _NAMES if name not in found]
    if missing:
        raise ValueError(f"{shown} has no {' and no '.join(missing)}; it has {there}")
