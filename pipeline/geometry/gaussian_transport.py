"""Linear maps between Gaussians: optimal transport (Bures) and whitening-colouring.

Covariances are symmetric, positive semidefinite, float64, shape (..., d, d); a map A takes centred
source rows y to A y. Directions in which the source has no variance have no image: A is zero there
(pseudo-inverse).
"""

from __future__ import annotations

import torch
from torch import Tensor

_NULL = 1e-10
"""Eigenvalues under this share of the largest count as zero where a covariance is inverted."""


def root(covariance: Tensor) -> Tensor:
    """Return Sigma^{1/2}, shape (..., d, d)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT


def inverse_root(covariance: Tensor) -> Tensor:
    """Return the pseudo-inverse of Sigma^{1/2}, shape (..., d, d)."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > _NULL * values[..., -1:]
    inverse = torch.where(kept, values, 1.0).rsqrt() * kept
    return (vectors * inverse.unsqueeze(-2)) @ vectors.mT


def bures_map(source: Tensor, target: Tensor) -> Tensor:
    """Return the optimal transport between centred Gaussians, symmetric, shape (..., d, d).

    T = S^{-1/2} (S^{1/2} Q S^{1/2})^{1/2} S^{-1/2} takes the source covariance S to the target Q,
    T S T = Q, and of all maps that do it moves rows least in the mean square (Peyré and Cuturi,
    Computational Optimal Transport, remark 2.31).
    """
    source_root, inverse = root(source), inverse_root(source)
    transport = inverse @ root(source_root @ target @ source_root) @ inverse
    return (transport + transport.mT) / 2


def whitening_colouring_map(source: Tensor, target: Tensor) -> Tensor:
    """Return Q^{1/2} S^{-1/2}, shape (..., d, d): whiten by the source S, colour by the target Q.

    It takes S to Q as the Bures map does, without being symmetric or moving rows least.
    """
    return root(target) @ inverse_root(source)


def block_bures_map(source: Tensor, target: Tensor) -> Tensor:
    """Return the Bures maps between the 2 x 2 diagonal blocks, block-diagonal, shape (r, r).

    It takes each block of the source covariance to the target's and leaves the correlation of
    blocks alone.
    """
    return torch.block_diag(*bures_map(_diagonal_blocks(source), _diagonal_blocks(target)))


def _diagonal_blocks(covariance: Tensor) -> Tensor:
    """Return the 2 x 2 blocks on the diagonal of a covariance (r, r), shape (r / 2, 2, 2)."""
    blocks = covariance.shape[0] // 2
    paired = covariance.reshape(blocks, 2, blocks, 2)
    return torch.einsum("kakb->kab", paired)


def displaced(transport: Tensor, displacement: float) -> Tensor:
    """Return T_t = (1 - t) I + t T, shape (..., d, d): displacement interpolation (McCann).

    t = 0 leaves rows where they are, t = 1 is the whole map.
    """
    identity = torch.eye(transport.shape[-1], dtype=transport.dtype, device=transport.device)
    return (1 - displacement) * identity + displacement * transport
