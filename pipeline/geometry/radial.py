"""Mergeable radial distributions of the blocks and the transport between them (section 4.4a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MANTISSA_BITS = 8
"""Bins of an octave as a power of two: 256, so that a bin is 0.4 % wide at most."""
_SHIFT = 23 - _MANTISSA_BITS
_SMALLEST_EXPONENT, _OCTAVES = -20, 32
_FIRST = (127 + _SMALLEST_EXPONENT) << _MANTISSA_BITS
_BINS = _OCTAVES << _MANTISSA_BITS
"""From 2^-20, which is below every radius, to 2^12; what lies outside counts in the end bins."""

TRANSPORT_LEVELS = 512
"""Number of intervals in the stored quantile tables, fewer where there are fewer samples."""


@dataclass(frozen=True)
class RadialSketch:
    """Mergeable histogram of the radius of each of m blocks.

    `counts` (m, bins) int64 in bins that a float32 names by its exponent and leading bits of its
    mantissa, all of one relative width: merging is exact, in any order, at any scale. `lowest` and
    `highest` (m,) float64 are the extremes.
    """

    counts: Tensor
    lowest: Tensor
    highest: Tensor

    @classmethod
    def zero(cls, blocks: int) -> RadialSketch:
        """Return the neutral element of `merge`."""
        infinite = torch.full((blocks,), torch.inf, dtype=torch.float64)
        return cls(torch.zeros(blocks, _BINS, dtype=torch.int64), infinite, -infinite)

    @classmethod
    def of(cls, radius: Tensor) -> RadialSketch:
        """Return the sketch of one block of samples, radii of shape (n, m)."""
        rows, blocks = radius.shape
        if rows == 0:
            return cls.zero(blocks)
        values = radius.to("cpu", torch.float32).contiguous().numpy()
        # Positive floats are ordered as their bits are.
        places = (values.view(np.int32) >> _SHIFT) - _FIRST
        np.clip(places, 0, _BINS - 1, out=places)
        places += np.arange(blocks, dtype=np.int32) * _BINS
        counts = np.bincount(places.ravel(), minlength=blocks * _BINS)
        lowest, highest = values.min(axis=0), values.max(axis=0)
        return cls(
            torch.from_numpy(counts.reshape(blocks, _BINS)),
            torch.from_numpy(lowest).to(torch.float64),
            torch.from_numpy(highest).to(torch.float64),
        )

    def merge(self, other: RadialSketch) -> RadialSketch:
        """Return the sketch of both sets of samples."""
        assert self.counts.shape == other.counts.shape, "sketches of different block counts"
        return RadialSketch(
            self.counts + other.counts,
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
        )

    @property
    def count(self) -> int:
        """Number of samples seen."""
        return int(self.counts[0].sum())

    def quantiles(self, levels: Sequence[float]) -> Tensor:
        """Return the radius quantiles of each block, shape (m, len(levels)), float64.

        Within a bin samples count as evenly spread.

        Raises:
            ValueError: when nothing was counted.
        """
        count = self.count
        if count == 0:
            raise ValueError("the radial quantiles of no embeddings do not exist")
        edges = ((torch.arange(_BINS + 1) + _FIRST) << _SHIFT).to(torch.int32).view(torch.float32)
        ends = self.counts.cumsum(dim=1)
        wanted = (torch.tensor(levels, dtype=torch.float64) * count).expand(len(ends), -1)
        # The first bin that reaches past the level; of the last level, the last that holds any.
        place = torch.searchsorted(ends, wanted.contiguous(), right=True)
        place = torch.minimum(place, torch.searchsorted(ends, ends[:, -1:].contiguous()))
        inside = self.counts.gather(1, place)
        share = (wanted - (ends.gather(1, place) - inside)) / inside
        edges[0], edges[-1] = 0, torch.inf
        extremes = self.lowest.unsqueeze(1), self.highest.unsqueeze(1)
        low, high = (edges.to(torch.float64)[side].clamp(*extremes) for side in (place, place + 1))
        return low + share * (high - low)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {"counts": self.counts, "lowest": self.lowest, "highest": self.highest}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RadialSketch:
        """Rebuild a state from `tensors()`."""
        return cls(tensors["counts"], tensors["lowest"], tensors["highest"])


@dataclass(frozen=True)
class RadialTransport:
    """One-dimensional transport T_k = (F_k^image)^-1 o F_k^text of each block's radius.

    Both tables have shape (m, levels + 1): quantiles at equally spaced levels, non-decreasing; T_k
    is the piecewise linear map from one to the other.
    """

    text_quantiles: Tensor
    image_quantiles: Tensor

    @classmethod
    def between(cls, text: RadialSketch, image: RadialSketch) -> RadialTransport:
        """Return the transport from the text's radial distributions to the image's."""
        # No finer than the samples: between levels that fall on one sample T_k would be a step.
        intervals = max(1, min(TRANSPORT_LEVELS, text.count - 1, image.count - 1))
        levels = np.linspace(0.0, 1.0, intervals + 1).tolist()
        # cummax removes dips at rounding level.
        text_quantiles = text.quantiles(levels).cummax(dim=1).values
        image_quantiles = image.quantiles(levels).cummax(dim=1).values
        return cls(text_quantiles, image_quantiles)

    def __call__(self, radius: Tensor) -> Tensor:
        """Return T_k(rho_k), shape (n, m), of radii (n, m).

        Outside the fitted range the end quantiles' ratio goes on, so that T_k stays positive,
        monotone and continuous.
        """
        source = self.text_quantiles
        target = self.image_quantiles
        values = radius.T.contiguous()
        upper = torch.searchsorted(source, values).clamp(1, source.shape[1] - 1)
        lower = upper - 1
        source_low, source_high = source.gather(1, lower), source.gather(1, upper)
        target_low, target_high = target.gather(1, lower), target.gather(1, upper)
        width = (source_high - source_low).clamp(min=torch.finfo(values.dtype).tiny)
        share = ((values - source_low) / width).clamp(0, 1)
        inside = target_low + share * (target_high - target_low)
        below = values * (target[:, :1] / source[:, :1])
        above = values * (target[:, -1:] / source[:, -1:])
        moved = torch.where(values < source[:, :1], below, inside)
        return torch.where(values > source[:, -1:], above, moved).T

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> RadialTransport:
        """Return the transport in another dtype or on another device."""
        return RadialTransport(
            self.text_quantiles.to(device, dtype).contiguous(),
            self.image_quantiles.to(device, dtype).contiguous(),
        )
