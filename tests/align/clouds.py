"""Small image and text clouds with a gap, and aligners small enough to fit in a moment."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.align import Aligner, create_aligner
from pipeline.align.settings import AlignSettings, PriorSettings, RefinerSettings

WIDTH, RANK, BLOCKS = 12, 6, 3

SMALL = AlignSettings(
    rank=RANK,
    mixing="random",
    prior=PriorSettings(neighbours=1, width=24, steps=30, batch_size=64),
    refiner=RefinerSettings(bounds="fixed", width=24, steps=20, batch_size=64),
)
"""Small, with the default start (gromov, on shrunk covariances); nothing learned but networks."""

RADIAL = replace(SMALL, init="radial", shrinkage="none")
"""The paper's own start, on covariances as they are."""


def clouds(images: int = 500, texts: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return unpaired unit rows: two anisotropic clouds around different means."""
    generator = torch.Generator().manual_seed(seed)

    def cloud(rows: int, mean: float, scale: Tensor) -> Tensor:
        noise = torch.randn(rows, WIDTH, generator=generator)
        centre = torch.linspace(-1, 1, WIDTH).roll(round(5 * mean)) * mean
        return torch.nn.functional.normalize(noise * scale + centre, dim=1)

    spread = torch.linspace(1.2, 0.2, WIDTH)
    return cloud(images, 0.6, spread), cloud(texts, -0.4, spread.roll(2) * 0.8)


def fitted(method: str, settings: AlignSettings = SMALL, seed: int = 0) -> Aligner:
    """Return an aligner fitted on the clouds."""
    return create_aligner(method, settings, seed).fit(*clouds())
