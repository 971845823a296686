"""Seeded pairs with a substitute, for the tests of metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.geometry.samples import gaussian

ROWS, WIDTH = 60, 40


def normalised(rows: Tensor) -> Tensor:
    """Return unit rows."""
    return torch.nn.functional.normalize(rows, dim=1)


def pairs(rows: int = ROWS, width: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, texts and substitutes of common meaning, each with noise and an offset."""
    scale = torch.linspace(1.5, 0.2, width)
    common = gaussian(rows, width, 0) * scale
    image = normalised(common + 0.9 * gaussian(rows, width, 1) + 0.3)
    text = normalised(common + 1.1 * gaussian(rows, width, 2) - 0.4)
    return image, text, normalised(text + 0.15 + 0.05 * gaussian(rows, width, 3))
