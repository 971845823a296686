"""The global initialization of the source (section 4.4a), in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.align.refiner import Parts
from pipeline.geometry.frame import Frame
from pipeline.geometry.polar import to_polar
from pipeline.geometry.radial import RadialTransport


@dataclass(frozen=True)
class GlobalInitialization:
    """Where the refinement starts: coordinates Q_U^T mu_i + A c and v0 = mu_{i,V} + D (y - mu_t)_V.

    c = Q_U^T (y - mu_t); A is the identity where the start is radial and T_k moves the radii. All
    is affine in y, so that the means are taken into constants: two passes over (n, d) in place of
    five. `transport` (r, r) is A^T, `minus_mean` (r,) -Q_U^T mu_t, `centre` (r,) Q_U^T mu_i,
    `offset` (d,) mu_{i,V} - D mu_t, `scale` (d,) the diagonal of D, `scaled_basis` (r, d) Q_U^T D.
    """

    basis: Tensor
    transport: Tensor
    minus_mean: Tensor
    centre: Tensor
    offset: Tensor
    scale: Tensor
    scaled_basis: Tensor
    radial: RadialTransport | None

    @classmethod
    def of(
        cls, frame: Frame, tensors: Mapping[str, Tensor], radial: RadialTransport | None
    ) -> Self:
        """Return the initialization of a frame and of an aligner's tensors, on their device."""
        scale, text_mean = tensors["complement_scale"], tensors["text_mean"]
        return cls(
            basis=frame.basis,
            transport=tensors["transport"].T,
            minus_mean=-frame.coordinates(text_mean),
            centre=frame.coordinates(tensors["image_mean"]),
            offset=tensors["complement_mean"] - scale * text_mean,
            scale=scale,
            scaled_basis=frame.basis.T * scale,
            radial=radial,
        )

    def __call__(self, text: Tensor) -> Parts:
        """Return the initial parts of text embeddings (n, d)."""
        inside = torch.addmm(self.minus_mean, text, self.basis)
        polar = to_polar(torch.addmm(self.centre, inside, self.transport))
        complement = torch.addcmul(self.offset, text, self.scale)
        return Parts(
            radius=polar.radius if self.radial is None else self.radial(polar.radius),
            phase=polar.phase,
            complement=complement.addmm_(inside, self.scaled_basis, alpha=-1),
        )
