"""What the methods on a fixed frame share: frame, map of the dominant subspace, complement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.align.settings import AnisoAlignSettings, Initialization
from pipeline.geometry.frame import (
    Frame,
    check_rank,
    choose_rank,
    fixed_frame,
    joint_structure_matrix,
)
from pipeline.geometry.gaussian_transport import block_bures_map, bures_map, displaced
from pipeline.geometry.gromov_transport import gromov_map
from pipeline.geometry.mixing import Mixing
from pipeline.geometry.moments import Moments
from pipeline.geometry.shrinkage import covariance_of

_EPSILON = 1e-8  # keeps D_V finite where the text has no spread


@dataclass(frozen=True)
class FrozenFrame:
    """The frame of two clouds and the covariances (d, d), shrunk or not, that it came from."""

    frame: Frame
    image_covariance: Tensor
    text_covariance: Tensor

    @classmethod
    def of(
        cls,
        image: Moments,
        text: Moments,
        settings: AnisoAlignSettings,
        seed: int,
        *,
        mixing: Mixing,
        images: Tensor | None = None,
    ) -> Self:
        """Freeze the frame of two clouds (sections 4.1 and 4.2), float64.

        `images` (n, d) are what a learned mixing is learned from.

        Raises:
            ValueError: when the rank does not fit the embeddings or the number of images.
        """
        covariances = [covariance_of(moments, settings.shrinkage) for moments in (image, text)]
        structure = joint_structure_matrix(covariances[1], covariances[0], settings.ridge)
        rank = settings.rank
        if rank == "auto":
            rank = choose_rank(structure, image.count)
        check_rank(rank, image.dimension, image.count)
        return cls(fixed_frame(structure, rank, mixing, seed, images), *covariances)

    def transport(self, start: Initialization, settings: AnisoAlignSettings) -> Tensor:
        """Return the linear map (r, r) of centred text coordinates; radial starts have none."""
        basis = self.frame.basis
        source = basis.T @ self.text_covariance @ basis
        target = basis.T @ self.image_covariance @ basis
        if start == "gromov":
            return gromov_map(source, target, settings.displacement, settings.isometry_weight)
        if start == "subspace":
            return displaced(bures_map(source, target), settings.displacement)
        if start == "block":
            return displaced(block_bures_map(source, target), settings.displacement)
        return torch.eye(self.frame.rank, dtype=basis.dtype)

    def complement_scale(self, displacement: float = 1.0) -> Tensor:
        """Return (1 - t) + t D_V, D_V = sd_V(image) / (sd_V(text) + eps), shape (d,) (4.4a)."""
        image_deviation = self.frame.complement_deviation(self.image_covariance)
        text_deviation = self.frame.complement_deviation(self.text_covariance)
        scale = image_deviation / (text_deviation + _EPSILON)
        return (1 - displacement) + displacement * scale
