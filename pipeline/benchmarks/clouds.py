"""Random clouds like an encoder's: unit rows about a mean, with a falling spectrum."""

from __future__ import annotations

import torch
from torch import Tensor


def random_cloud(rows: int, dimension: int, seed: int, draw: int = 0) -> Tensor:
    """Return unit rows (n, d), float32, with about half of their length in a common mean.

    Mean and axes hang on the seed alone; another `draw` gives other rows of the same cloud.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(dimension, generator=generator)
    spectrum = torch.arange(1, dimension + 1, dtype=torch.float32) ** -0.5
    axes = torch.randperm(dimension, generator=generator)
    generator.manual_seed(seed * 1_000_003 + draw + 1)
    centred = torch.randn(rows, dimension, generator=generator) * spectrum[axes]
    centred *= mean.norm() / spectrum.norm()
    return torch.nn.functional.normalize(mean + centred, dim=1)
