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
    # By floor: the remainder of floats is not vectorised, and five times as slow.
    wrapped = angle - 2 * math.pi * torch.floor(angle * (0.5 / math.pi) + 0.5)
    # Rounding may lead to pi itself, or to just below -pi.
    wrapped = torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)
    return torch.where(wrapped < -math.pi, wrapped + 2 * math.pi, wrapped)


def radii(coordinates: Tensor) -> Tensor:
    """Return the radius of each block, shape (n, m), of coordinates, shape (n, r)."""
    return _radius(*coordinates.unflatten(-1, (-1, 2)).unbind(-1))


def _radius(first: Tensor, second: Tensor) -> Tensor:
    return torch.sqrt(first * first + second * second + EPSILON)


def to_polar(coordinates: Tensor) -> Polar:
    """Return radius and phase of each block (a_k, b_k) of coordinates, shape (n, r)."""
    # Each on its own in memory, or atan2 is not vectorised.
    first, second = coordinates.unflatten(-1, (-1, 2)).movedim(-1, 0).contiguous().unbind()
    phase = torch.atan2(second, first)
    # atan2 gives pi where a < 0 and b = +0; the range is [-pi, pi) everywhere.
    return Polar(_radius(first, second), torch.where(phase >= math.pi, phase - 2 * math.pi, phase))


def from_polar(radius: Tensor, phase: Tensor) -> Tensor:
    """Return coordinates, shape (n, r), from radii and phases, both (n, m)."""
    return torch.stack((radius * torch.cos(phase), radius * torch.sin(phase)), dim=-1).flatten(-2)
