"""Seeded samples for the geometry tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.geometry.mixing import mixing_matrix
from pipeline.geometry.polar import Polar


def gaussian(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)


def unit_rows(rows: int, width: int, seed: int) -> Tensor:
    """Return rows on the unit sphere."""
    return torch.nn.functional.normalize(gaussian(rows, width, seed), dim=1)


def rotation(width: int, seed: int) -> Tensor:
    """Return a Haar-random orthogonal matrix."""
    return mixing_matrix("random", width, seed, None)


def covariance(width: int, seed: int) -> Tensor:
    """Return a positive definite matrix with distinct eigenvalues."""
    factor = gaussian(3 * width, width, seed) * torch.linspace(2, 0.1, width)
    return factor.T @ factor / (3 * width)


def polar_sample(rows: int, blocks: int, seed: int) -> Polar:
    """Return radii and coupled, anchored phases."""
    common = gaussian(rows, 1, seed + 1)
    phase = gaussian(rows, blocks, seed) * 0.7 + common + torch.arange(blocks)
    wrapped = torch.remainder(phase + math.pi, 2 * math.pi) - math.pi
    return Polar(gaussian(rows, blocks, seed + 2).abs() + 0.01, wrapped)
