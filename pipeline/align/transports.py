"""Closed-form transports of the dominant subspace, with the complement scaled."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pipeline.align.baselines import AffineAligner
from pipeline.align.frames import FrozenFrame
from pipeline.align.settings import AlignSettings, AnisoAlignSettings, Initialization
from pipeline.geometry.frame import Frame
from pipeline.geometry.mixing import Mixing, mixing_rows
from pipeline.geometry.moments import Moments


class SubspaceTransport(AffineAligner):
    """A linear transport A in U, scaling in V, on AnisoAlign's fixed frame.

    With z_U and z_V as in section 4.1: e' = Norm(mu_{i,U} + A (y_U - mu_{t,U}) + mu_{i,V} +
    D (y_V - mu_{t,V})) with D = (1 - t) I + t D_V, D_V as in section 4.4a and t the displacement.
    Calibrated like AnisoAlign (section 4.4c). Moments of both clouds are all it needs (and images,
    where a mixing is learned).
    """

    calibrates = True
    start: ClassVar[Initialization]
    used: ClassVar[tuple[str, ...]] = ("rank", "ridge", "shrinkage", "displacement")
    """The settings that the map depends on."""

    def __init__(self, *, seed: int = 0, **settings: Any) -> None:
        """Take settings by their names in `AnisoAlignSettings`, those in `used`.

        Raises:
            ValueError: for a setting out of its range.
            TypeError: for a setting that the method does not use.
        """
        super().__init__()
        unknown = set(settings) - set(self.used)
        if unknown:
            raise TypeError(f"{self.method} does not use {', '.join(sorted(unknown))}")
        self.settings = AnisoAlignSettings(**settings)
        self.seed = seed

    @classmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with what it uses of the `align` section."""
        return cls(seed=seed, **{name: getattr(settings, name) for name in cls.used})

    def configuration(self) -> dict[str, Any]:
        """Return method, seed and the settings used."""
        used = {name: getattr(self.settings, name) for name in self.used}
        return {**super().configuration(), **used, "seed": self.seed}

    def fit_moments(self, image: Moments, text: Moments, images: Tensor | None = None) -> Self:
        """Freeze the frame and fix A and D from merged moments; `calibrate` must follow.

        `images` (n, d) are needed where a mixing is learned.

        Raises:
            ValueError: when the rank does not fit the embeddings or the number of images.
        """
        return self.fit_frozen(self.freeze(image, text, images), image, text)

    def freeze(self, image: Moments, text: Moments, images: Tensor | None = None) -> FrozenFrame:
        """Return the frame of merged moments, which displacement and isometry leave as it is."""
        return FrozenFrame.of(
            image, text, self.settings, self.seed, mixing=self._mixing, images=images
        )

    def fit_frozen(self, frozen: FrozenFrame, image: Moments, text: Moments) -> Self:
        """Fix A and D in a frame from `freeze`; `calibrate` must follow; returns self."""
        super().fit_moments(image, text)
        for name, tensor in {
            "basis": frozen.frame.basis,
            "transport": frozen.transport(self.start, self.settings),
            "complement_scale": frozen.complement_scale(self.settings.displacement),
        }.items():
            self._tensors[name] = tensor.to(self._device, torch.float32).contiguous()
        return self

    @property
    def images_wanted(self) -> int:
        """Number of image rows that a mixing is learned from."""
        return mixing_rows(self._mixing)

    @property
    def _mixing(self) -> Mixing:
        # Without blocks nothing depends on the mixing.
        return self.settings.mixing if "mixing" in self.used else "identity"

    @property
    def frame(self) -> Frame:
        """The frozen frame."""
        return Frame(self._tensor("basis"))

    def move(self, centred: Tensor) -> Tensor:
        """Return A (y_U - mu_{t,U}) + D (y_V - mu_{t,V}), shape (n, d).

        As D z + (Q_U A - D Q_U) c with c = Q_U^T z: two products.
        """
        basis, scale = self._tensor("basis"), self._tensor("complement_scale")
        inside = (basis @ self._tensor("transport")).T - basis.T * scale
        return torch.addmm(scale * centred, centred @ basis, inside)


class BuresBlock(SubspaceTransport):
    """The displaced Bures map (1 - t) I + t T in each two-dimensional block of U.

    At t = 1 the 2 x 2 moments match; the coupling between blocks stays.
    """

    method = "bures-block"
    start = "block"
    used = (*SubspaceTransport.used, "mixing")


class BuresSubspace(SubspaceTransport):
    """The displaced Bures map (1 - t) I + t T on the whole of U.

    At t = 1 the r x r covariance matches.
    """

    method = "bures-subspace"
    start = "subspace"


class BuresGromov(SubspaceTransport):
    """The Bures map that keeps the texts' inner products: fused Gromov-Wasserstein on U.

    `bures-subspace` pays for the distance that rows move. What consistency (Psi, Omega) measures
    is another thing: the inner products of texts among themselves, which any rotation keeps. So A
    minimises B^2(A S A^T, Q) + (1 - t) / t E||A y - y||^2 + g E(<A y, A y'> - <y, y'>)^2
    (`pipeline.geometry.gromov_transport`, with its derivation and units); with g = 0 and texts
    that spread in all of U it is `bures-subspace`.
    """

    method = "bures-gromov"
    start = "gromov"
    used = (*SubspaceTransport.used, "isometry_weight")


assert all(
    set(method.used) <= {field.name for field in fields(AnisoAlignSettings)}
    for method in (BuresBlock, BuresSubspace, BuresGromov)
)
