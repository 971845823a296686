"""The mergeable second-pass state of one cloud in the frozen frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.align.base import with_prefix
from pipeline.geometry.circular import CircularSums
from pipeline.geometry.polar import radii
from pipeline.geometry.radial import RadialSketch


@dataclass(frozen=True)
class PolarStatistics:
    """Mergeable second-pass state of one cloud in the frozen frame: phases and radii."""

    circular: CircularSums
    radial: RadialSketch

    @classmethod
    def zero(cls, blocks: int) -> PolarStatistics:
        """Return the neutral element of `merge`."""
        return cls(CircularSums.zero(blocks), RadialSketch.zero(blocks))

    @classmethod
    def of(cls, coordinates: Tensor) -> PolarStatistics:
        """Return the state of one block of samples, coordinates (n, r) in the frame."""
        return cls(CircularSums.of(coordinates), RadialSketch.of(radii(coordinates)))

    def merge(self, other: PolarStatistics) -> PolarStatistics:
        """Return the state of both sets of samples."""
        return PolarStatistics(self.circular.merge(other.circular), self.radial.merge(other.radial))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {
            **{f"circular.{name}": tensor for name, tensor in self.circular.tensors().items()},
            **{f"radial.{name}": tensor for name, tensor in self.radial.tensors().items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PolarStatistics:
        """Rebuild a state from `tensors()`."""
        return cls(
            CircularSums.from_tensors(with_prefix(tensors, "circular.")),
            RadialSketch.from_tensors(with_prefix(tensors, "radial.")),
        )
