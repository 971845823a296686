"""Mergeable first and second moments of embeddings, accumulated in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.geometry.symmetric_product import SymmetricProduct

_CHUNK_ROWS = 2048  # bounds the float64 copy of a block: 2048 x 1280 x 8 B = 21 MB


@dataclass(frozen=True)
class MeanSum:
    """Sum and count of embeddings: the mergeable state of a mean.

    `total` has shape (d,), float64.
    """

    count: int
    total: Tensor

    @classmethod
    def zero(cls, dimension: int) -> MeanSum:
        """Return the neutral element of `merge`."""
        return cls(0, torch.zeros(dimension, dtype=torch.float64))

    @classmethod
    def of(cls, embeddings: Tensor) -> MeanSum:
        """Return the state of one block of embeddings, shape (n, d)."""
        total = embeddings.sum(dim=0, dtype=torch.float64).cpu()
        return cls(embeddings.shape[0], total)

    def merge(self, other: MeanSum) -> MeanSum:
        """Return the state of both sets of embeddings together."""
        return MeanSum(self.count + other.count, self.total + other.total)

    @property
    def mean(self) -> Tensor:
        """Mean embedding, shape (d,), float64. Raises ValueError when nothing was counted."""
        if self.count == 0:
            raise ValueError("the mean of no embeddings does not exist")
        return self.total / self.count

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {"count": torch.tensor([self.count]), "total": self.total}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> MeanSum:
        """Rebuild a state from `tensors()`."""
        return cls(int(tensors["count"][0]), tensors["total"])


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred scatter of embeddings: the mergeable state of a covariance.

    `mean` has shape (d,), `scatter` (d, d) is sum (z - mean)(z - mean)^T; both float64.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def zero(cls, dimension: int) -> Moments:
        """Return the neutral element of `merge`."""
        return cls(
            0,
            torch.zeros(dimension, dtype=torch.float64),
            torch.zeros(dimension, dimension, dtype=torch.float64),
        )

    @classmethod
    def of(cls, embeddings: Tensor) -> Moments:
        """Return the moments of one block of embeddings, shape (n, d)."""
        rows, width = embeddings.shape
        if rows == 0:
            return cls.zero(width)
        # About a point near the mean, exact in float64; what it is off is made good at the end.
        centre = embeddings[:_CHUNK_ROWS].to(torch.float32).mean(dim=0).to(torch.float64)
        total = torch.zeros_like(centre)
        products = SymmetricProduct(width, centre.device)
        chunk = centre.new_empty(min(rows, _CHUNK_ROWS), width)
        ones = centre.new_ones(len(chunk))
        for part in embeddings.split(_CHUNK_ROWS):
            centred = chunk[: len(part)].copy_(part).sub_(centre)
            total.addmv_(centred.T, ones[: len(part)])
            products.add(centred)
        shift = total / rows
        scatter = products.result - rows * torch.outer(shift, shift)
        return cls(rows, (centre + shift).cpu(), scatter.cpu())

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan, Golub and LeVeque's update)."""
        if self.count == 0:
            return other
        if other.count == 0:
            return self
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        weight = self.count * other.count / count
        scatter = self.scatter + other.scatter + weight * torch.outer(shift, shift)
        return Moments(count, mean, scatter)

    @property
    def dimension(self) -> int:
        """Width d of the embeddings."""
        return self.mean.shape[0]

    @property
    def covariance(self) -> Tensor:
        """Covariance divided by n, shape (d, d), float64. Raises ValueError when empty."""
        if self.count == 0:
            raise ValueError("the covariance of no embeddings does not exist")
        return self.scatter / self.count

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {
            "count": torch.tensor([self.count]),
            "mean": self.mean,
            "scatter": self.scatter,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """Rebuild a state from `tensors()`."""
        return cls(int(tensors["count"][0]), tensors["mean"], tensors["scatter"])
