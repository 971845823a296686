"""Embeddings to fit on and pairs to measure on: read, or split off the same pairs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pipeline.align.training import seed_of
from pipeline.geometry.neighbours import NEIGHBOURS
from pipeline.names import DEFAULT_NAMES, Names


@dataclass(frozen=True)
class Clouds:
    """Unit rows of both modalities to fit on, `image` (n, d) and `text` (k, d), unpaired."""

    image: Tensor
    text: Tensor

    def to_bytes(self) -> bytes:
        """Return the .npz that `read_clouds` (or `read_pairs`, of pairs) reads."""
        buffer = io.BytesIO()
        np.savez(buffer, image=self.image.numpy(), text=self.text.numpy())
        return buffer.getvalue()


@dataclass(frozen=True)
class Pairs(Clouds):
    """Paired unit rows, `image` and `text` (n, d)."""


def unit_rows(array: Any, name: str, path: str) -> Tensor:
    """Return an array (n, d) as L2-normalised float32 rows; `name` and `path` are for errors.

    Raises:
        ValueError: when it is no matrix of floats, or a row is zero or not finite.
    """
    if array.dtype.kind != "f" or array.ndim != 2:
        raise ValueError(
            f"{path}: {name} must be a two-dimensional array of floats, not {array.dtype} of shape "
            f"{array.shape}"
        )
    rows = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    norms = rows.norm(dim=1, keepdim=True)
    unusable = ~torch.isfinite(norms).squeeze(1) | (norms == 0).squeeze(1)
    if bool(unusable.any()):
        first = int(unusable.nonzero()[0])
        raise ValueError(
            f"{path}: {name} has {int(unusable.sum())} rows that are zero or not finite, the first "
            f"at {first}; remove them, and what is paired with them"
        )
    return rows / norms


def read_clouds(path: str, names: Names = DEFAULT_NAMES) -> Clouds:
    """Read two clouds from an .npz with arrays `image` (n, d) and `text` (k, d).

    With other names of the sides the arrays are named by these. Rows are L2-normalised.

    Raises:
        ValueError: when the file, an array or its values cannot be used.
    """
    wanted = names.target, names.source
    try:
        with np.load(path, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in wanted if name in arrays}
            there = ", ".join(arrays.files) or "none"
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    # numpy says ValueError of anything pickled, and offers to load it unsafely.
    except (BadZipFile, EOFError, ValueError, AttributeError, TypeError):
        raise ValueError(f"{path} is not an .npz archive of arrays of floats") from None
    missing = [name for name in wanted if name not in read]
    if missing:
        raise ValueError(f"{path} has no array named {' or '.join(missing)}; it has {there}")
    image, text = (unit_rows(read[name], name, path) for name in wanted)
    if image.shape[1] != text.shape[1]:
        raise ValueError(f"{path}: {_shapes(image, text, names)}; both need equal widths")
    return Clouds(image, text)


def _shapes(image: Tensor, text: Tensor, names: Names) -> str:
    shapes = tuple(image.shape), tuple(text.shape)
    return f"{names.target} has shape {shapes[0]}, {names.source} {shapes[1]}"


def read_pairs(path: str, names: Names = DEFAULT_NAMES) -> Pairs:
    """Read paired embeddings from an .npz with arrays `image` and `text`, both (n, d).

    With other names of the sides the arrays are named by these. Rows are L2-normalised.

    Raises:
        ValueError: when the file, an array or its values cannot be used.
    """
    clouds = read_clouds(path, names)
    image, text = clouds.image, clouds.text
    if image.shape != text.shape:
        raise ValueError(f"{path}: {_shapes(image, text, names)}; pairs need equal shapes")
    return Pairs(image, text)


@dataclass(frozen=True)
class Split:
    """Row positions: `image` and `text` to fit on (the same rows in unlike order), `held_out`."""

    image: Tensor
    text: Tensor
    held_out: Tensor

    def to_mapping(self) -> dict[str, list[int]]:
        """Return the positions as plain lists, so that others can repeat the comparison."""
        return {name: rows.tolist() for name, rows in vars(self).items()}


def split_rows(rows: int, share: float, seed: int) -> Split:
    """Return a seeded split of pairs: a `share` of the rows to fit on, the rest to measure on.

    The fitting part's texts are permuted, so that nothing can lean on its pairs.

    Raises:
        ValueError: when a part would be too small to measure.
    """
    fitted = round(rows * share) if 0 < share < 1 else 0
    if fitted < 2 or rows - fitted <= NEIGHBOURS:
        raise ValueError(
            f"--split {share} of {rows} pairs leaves {fitted} to fit on and {rows - fitted} to "
            f"measure; needed are at least 2 and {NEIGHBOURS + 1}"
        )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffle = torch.Generator().manual_seed(seed_of(seed, "unpaired"))
    image = order[:fitted]
    return Split(image, image[torch.randperm(fitted, generator=shuffle)], order[fitted:])


def split_pairs(pairs: Pairs, split: Split) -> tuple[Clouds, Pairs]:
    """Return the two unpaired clouds to fit on and the pairs held out."""
    fitting = Clouds(pairs.image[split.image], pairs.text[split.text])
    return fitting, Pairs(pairs.image[split.held_out], pairs.text[split.held_out])
