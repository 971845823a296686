"""Closed-form alignment methods (method table of section 5)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from pipeline.align.base import MomentAligner, normalise
from pipeline.geometry.moments import Moments


class Identity(MomentAligner):
    """The text embedding itself: "Text", "without alignment"."""

    method = "identity"

    def map(self, text: Tensor) -> Tensor:
        """Return Norm(y), shape (n, d)."""
        return normalise(text.to(torch.float32))


class Centroid(MomentAligner):
    """Centroid shift Norm(y - mu_t + mu_i)."""

    method = "centroid"

    def map(self, text: Tensor) -> Tensor:
        """Return Norm(y - mu_t + mu_i), shape (n, d)."""
        shift = self._tensor("image_mean") - self._tensor("text_mean")
        return normalise(text.to(torch.float32) + shift)


class ReAlign(MomentAligner):
    """ReAlign (arXiv 2602.07026): anchor, trace and centroid alignment.

    e' = Norm(mu_i + s (y - mu_t)) with s = sqrt(tr Sigma_i / tr Sigma_t); then the mean of e' over
    the corpus is replaced by mu_i and the row normalised again.
    """

    method = "realign"
    calibrates = True

    def fit_moments(self, image: Moments, text: Moments) -> Self:
        """Fit on merged moments; `calibrate` must follow; returns self.

        Raises:
            ValueError: when all text embeddings are equal, so that their trace is zero.
        """
        super().fit_moments(image, text)
        text_trace = torch.trace(text.covariance)
        if text_trace <= 0:
            raise ValueError("all text embeddings are equal: their covariance has no trace")
        scale = torch.sqrt(torch.trace(image.covariance) / text_trace)
        self._tensors["scale"] = scale.to(self._device, torch.float32).reshape(1)
        return self

    def map(self, text: Tensor) -> Tensor:
        """Return Norm(mu_i + s (y - mu_t)), shape (n, d)."""
        centred = text.to(torch.float32) - self._tensor("text_mean")
        return normalise(self._tensor("image_mean") + self._tensor("scale") * centred)
