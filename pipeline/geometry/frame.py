"""The fixed frame (section 4.1): joint structure matrix, rank, dominant subspace, mixing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.geometry.mixing import MIXING_ROWS, Mixing, mixing_matrix

_ENERGY = 0.99
_LARGEST_AUTO_RANK = 64


def joint_structure_matrix(
    text_covariance: Tensor, image_covariance: Tensor, ridge: float = 0.0
) -> Tensor:
    """Return S = Sigma_t + Sigma_i + lambda I, shape (d, d) (section 4.1)."""
    identity = torch.eye(
        text_covariance.shape[0], dtype=text_covariance.dtype, device=text_covariance.device
    )
    return text_covariance + image_covariance + ridge * identity


def choose_rank(structure: Tensor, image_count: int) -> int:
    """Choose an even rank r from the joint structure matrix, shape (d, d).

    The smallest even rank whose eigenvalues hold 99 % of the trace, at most 64: past the first, a
    block is rotation of noise; past 64, of the ranks from 16 to 128 tried, a linear transport of U
    mixes little more and keeps less. It is kept below d and below the number of images, so that
    data support the subspace.

    Raises:
        ValueError: with fewer than three images, which support no block at all, or without any
            covariance.
    """
    limit = min(structure.shape[0], image_count - 1)
    if limit < 2:
        raise ValueError(
            f"rank auto needs at least 3 target embeddings of 2 dimensions, not {image_count} of "
            f"dimension {structure.shape[0]}"
        )
    eigenvalues = torch.linalg.eigvalsh(structure).clamp(min=0)
    if not bool(eigenvalues[-1] > 0):
        raise ValueError("rank auto needs embeddings that differ; these have no covariance")
    shares = eigenvalues.flip(0).cumsum(0) / eigenvalues.sum()
    needed = int((shares < _ENERGY).sum()) + 1
    return min(needed + needed % 2, _LARGEST_AUTO_RANK, 2 * (limit // 2))


def check_rank(rank: int, dimension: int, image_count: int) -> None:
    """Check that a rank can be used; raises ValueError saying why when it cannot."""
    if rank < 2 or rank % 2:
        raise ValueError(f"align.rank must be an even number of at least 2, not {rank}")
    if rank > dimension:
        raise ValueError(
            f"align.rank is {rank}, but the embeddings have only {dimension} dimensions; "
            f"choose an even rank up to {dimension - dimension % 2}, or auto"
        )
    if image_count <= rank:
        raise ValueError(
            f"align.rank is {rank}, but there are only {image_count} target embeddings; the "
            "covariance needs more of them than the rank: add some, lower align.rank, or use auto"
        )


def dominant_basis(structure: Tensor, rank: int) -> Tensor:
    """Return the top-r eigenvectors of S as columns, shape (d, r), float64, in falling order.

    The sign of each vector is fixed (largest entry positive), so the same S gives the same basis.
    """
    _, vectors = torch.linalg.eigh(structure)
    basis = vectors.flip(dims=[1])[:, :rank]
    largest = basis.abs().argmax(dim=0)
    signs = torch.sign(basis[largest, torch.arange(rank)])
    return basis * signs


@dataclass(frozen=True)
class Frame:
    """An orthonormal basis of the dominant subspace U; `basis` has shape (d, r)."""

    basis: Tensor

    @property
    def dimension(self) -> int:
        """Width d of the embeddings."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """Dimension r of U."""
        return self.basis.shape[1]

    @property
    def blocks(self) -> int:
        """Number m = r / 2 of two-dimensional blocks."""
        return self.rank // 2

    def coordinates(self, embeddings: Tensor) -> Tensor:
        """Return c = Q_U^T z, shape (n, r), of embeddings, shape (n, d)."""
        return embeddings @ self.basis

    def embed(self, coordinates: Tensor) -> Tensor:
        """Return Q_U c, shape (n, d), of coordinates, shape (n, r)."""
        return coordinates @ self.basis.T

    def complement(self, embeddings: Tensor) -> Tensor:
        """Return z_V = z - Q_U Q_U^T z, shape (n, d)."""
        return embeddings - self.embed(self.coordinates(embeddings))

    def complement_deviation(self, covariance: Tensor) -> Tensor:
        """Return the standard deviation of each coordinate of z_V, shape (d,), from Sigma (d, d).

        diag(P_V Sigma P_V) is taken from the covariance, so no second look at the data is needed.
        """
        projector = torch.eye(self.dimension, dtype=torch.float64) - self.basis @ self.basis.T
        variance = torch.einsum("ij,jk,ki->i", projector, covariance, projector)
        return variance.clamp(min=0).sqrt()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Frame:
        """Return the frame in another dtype or on another device."""
        return Frame(self.basis.to(device=device, dtype=dtype or self.basis.dtype))


def fixed_frame(
    structure: Tensor, rank: int, mixing: Mixing, seed: int, images: Tensor | None = None
) -> Frame:
    """Return the frozen frame: the dominant basis of S, shape (d, d), mixed by R.

    `images` (n, d) are what a learned mixing is learned from.
    """
    basis = dominant_basis(structure, rank)
    coordinates = None
    if mixing == "learned" and images is not None:
        stride = -(-images.shape[0] // MIXING_ROWS)
        coordinates = images[::stride].to(basis.dtype) @ basis
    return Frame(basis @ mixing_matrix(mixing, rank, seed, coordinates))
