"""Covariances from few samples: Ledoit and Wolf's shrinkage, from moments alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.geometry.moments import Moments

Shrinkage = Literal["ledoit-wolf", "none"]


def ledoit_wolf_intensity(moments: Moments) -> float:
    """Return the share in [0, 1] of the isotropic target in the shrunk covariance.

    Ledoit and Wolf (A well-conditioned estimator for large-dimensional covariance matrices, 2004):
    min(beta, delta) / delta with delta = ||Sigma - (tr Sigma / d) I||_F^2 / d and
    beta = (E ||z - mu||^4 - ||Sigma||_F^2) / (n d). Rows have unit norm, so that
    ||z - mu||^2 = 1 + ||mu||^2 - 2 <mu, z> and the fourth moment is
    (tr Sigma)^2 + 4 mu^T Sigma mu: mergeable moments are enough, no second look at the rows.
    """
    covariance, mean = moments.covariance, moments.mean
    dimension = moments.dimension
    trace, energy = torch.trace(covariance), covariance.square().sum()
    fourth = trace**2 + 4 * mean @ covariance @ mean
    beta = float((fourth - energy) / (moments.count * dimension))
    delta = float((energy - trace**2 / dimension) / dimension)
    if beta <= 0:
        return 0.0
    return 1.0 if beta >= delta else beta / delta


def covariance_of(moments: Moments, shrinkage: Shrinkage) -> Tensor:
    """Return the covariance, shape (d, d), float64, as it is or shrunk to its mean variance."""
    covariance = moments.covariance
    if shrinkage == "none":
        return covariance
    intensity = ledoit_wolf_intensity(moments)
    isotropic = torch.eye(moments.dimension, dtype=covariance.dtype) * (
        torch.trace(covariance) / moments.dimension
    )
    return (1 - intensity) * covariance + intensity * isotropic
