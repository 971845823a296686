"""Two-dimensional blocks and their polar coordinates (section 4.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-12
"""Keeps a radius positive, so that its logarithm exists."""


class Polar(NamedTuple):
    """Radii (n, m) and phases (n, m), phases in [-pi, pi) radians."""

    radius: Tensor
    phase: Tensor


def wrap(angle: Tensor) -> Tensor:
    """Map angles in radians to [-pi, pi)."""
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    # Just below -pi the remainder rounds up to 2 pi itself.
    return torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)


def to_polar(coordinates: Tensor) -> Polar:
    """Return radius and phase of each block (a_k, b_k) of coordinates, shape (n, r)."""
    blocks = coordinates.unflatten(-1, (-1, 2))
    first, second = blocks[..., 0], blocks[..., 1]
    radius = torch.sqrt(first * first + second * second + EPSILON)
    # atan2 gives pi where a < 0 and b = +0; wrapped, the range is [-pi, pi) everywhere.
    return Polar(radius, wrap(torch.atan2(second, first)))


def from_polar(radius: Tensor, phase: Tensor) -> Tensor:
    """Return coordinates, shape (n, r), from radii and phases, both (n, m)."""
    return torch.stack((radius * torch.cos(phase), radius * torch.sin(phase)), dim=-1).flatten(-2)
