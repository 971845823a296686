"""Affine alignment methods (method table of section 5)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pipeline.align.base import MomentAligner, normalise
from pipeline.align.settings import AlignSettings, MomentSettings
from pipeline.geometry.gaussian_transport import bures_map, whitening_colouring_map
from pipeline.geometry.moments import Moments


class AffineAligner(MomentAligner):
    """A method that moves text by mu_i + A (y - mu_t) and normalises."""

    @abstractmethod
    def move(self, centred: Tensor) -> Tensor:
        """Return A (y - mu_t), shape (n, d), of centred rows y - mu_t (n, d), float32."""

    def moved(self, text: Tensor) -> Tensor:
        """Return mu_i + A (y - mu_t), shape (n, d), not normalised, of text embeddings (n, d)."""
        centred = text.to(self._device, torch.float32) - self._tensor("text_mean")
        return self._tensor("image_mean") + self.move(centred)

    def map(self, text: Tensor) -> Tensor:
        """Return Norm(mu_i + A (y - mu_t)), shape (n, d), of text embeddings (n, d)."""
        return normalise(self.moved(text))


class Identity(MomentAligner):
    """The text embedding itself: "Text", "without alignment"."""

    method = "identity"

    def map(self, text: Tensor) -> Tensor:
        """Return Norm(y), shape (n, d)."""
        return normalise(text.to(torch.float32))


class Centroid(AffineAligner):
    """Centroid shift Norm(y - mu_t + mu_i): Mind the Gap (Liang et al., NeurIPS 2022)."""

    method = "centroid"

    def move(self, centred: Tensor) -> Tensor:
        """Return y - mu_t as it is."""
        return centred


class Unicorn(Centroid):
    """Unicorn (arXiv 2503.22655): y - mu_t + mu_i, not normalised.

    Its released code removes the text mean, y - mu_t, and reads the result against x - mu_i. In
    image coordinates that is the centroid shift as it is; so rows are not of unit norm.
    """

    method = "unicorn"
    unit_rows = False

    def map(self, text: Tensor) -> Tensor:
        """Return y - mu_t + mu_i, shape (n, d)."""
        return self.moved(text)


class Moment(AffineAligner):
    """Full moment match Norm(mu_i + A (y - mu_t)) with A Sigma_t A^T = Sigma_i.

    A is the Gaussian optimal transport (`map="bures"`) or Sigma_i^{1/2} Sigma_t^{-1/2}
    (`map="whitening"`); where the texts have no variance, A is zero.
    """

    method = "moment"

    def __init__(self, map: Literal["bures", "whitening"] = "bures") -> None:
        """Take the kind of map; raises ValueError for an unknown one."""
        super().__init__()
        self.settings = MomentSettings(map=map)

    @classmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with `align.moment`."""
        del seed
        return cls(settings.moment.map)

    def configuration(self) -> dict[str, Any]:
        """Return method and kind of map."""
        return {**super().configuration(), "map": self.settings.map}

    def fit_moments(self, image: Moments, text: Moments, images: Tensor | None = None) -> Self:
        """Fit on merged moments; returns self."""
        super().fit_moments(image, text, images)
        between = bures_map if self.settings.map == "bures" else whitening_colouring_map
        transport = between(text.covariance, image.covariance)
        self._tensors["transport"] = transport.to(self._device, torch.float32)
        return self

    def move(self, centred: Tensor) -> Tensor:
        """Return A (y - mu_t), shape (n, d)."""
        return centred @ self._tensor("transport").T


class ReAlign(AffineAligner):
    """ReAlign (arXiv 2602.07026): anchor, trace and centroid alignment.

    e' = Norm(mu_i + s (y - mu_t)) with s = sqrt(tr Sigma_i / tr Sigma_t); then the mean of e' over
    the corpus is replaced by mu_i and the row normalised again.
    """

    method = "realign"
    calibrates = True

    def fit_moments(self, image: Moments, text: Moments, images: Tensor | None = None) -> Self:
        """Fit on merged moments; `calibrate` must follow; returns self.

        Raises:
            ValueError: when all text embeddings are equal, so that their trace is zero.
        """
        super().fit_moments(image, text, images)
        text_trace = torch.trace(text.covariance)
        if text_trace <= 0:
            raise ValueError("all source embeddings are equal: their covariance has no trace")
        scale = torch.sqrt(torch.trace(image.covariance) / text_trace)
        self._tensors["scale"] = scale.to(self._device, torch.float32).reshape(1)
        return self

    def moved(self, text: Tensor) -> Tensor:
        """Return mu_i + s (y - mu_t), shape (n, d), of text embeddings (n, d), in one pass."""
        scale = self._tensor("scale")
        offset = self._tensor("image_mean") - scale * self._tensor("text_mean")
        return torch.addcmul(offset, text.to(self._device, torch.float32), scale)

    def move(self, centred: Tensor) -> Tensor:
        """Return s (y - mu_t), shape (n, d)."""
        return self._tensor("scale") * centred
