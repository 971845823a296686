"""The diagnostic method that looks at pairs: the oracle (section 5)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from pipeline.align.base import PairedAligner, normalise
from pipeline.align.settings import AlignSettings, OracleSettings
from pipeline.geometry.moments import Moments


class Oracle(PairedAligner):
    """Remove a share of each pair's own residual in its dominant directions.

    With r = (x - mu_x) - (y - mu_y) over the pairs given and W the top-K eigenvectors of the
    covariance of r: z = Norm(y - mu_y + mu_x + alpha W W^T r). alpha = 0 is the centroid shift;
    alpha = 1 with all directions gives the image itself. It says what a correction of K directions
    could reach at best (Anisotropic Modality Align, arXiv 2605.07825).
    """

    method = "oracle"

    def __init__(self, share: float = 0.5, directions: int | None = None) -> None:
        """Take alpha and K (None for all); raises ValueError when one is out of range."""
        super().__init__()
        self.settings = OracleSettings(share=share, directions=directions)

    @classmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with `align.oracle`."""
        del seed
        return cls(settings.oracle.share, settings.oracle.directions)

    def configuration(self) -> dict[str, Any]:
        """Return method, share and directions."""
        return {**super().configuration(), **vars(self.settings)}

    def transform_pairs(self, image: Tensor, text: Tensor) -> Tensor:
        """Return substitutes (n, d) of texts (n, d), given their images (n, d) in the same order.

        Raises:
            NotFittedError: before `fit`.
            ValueError: when the shapes differ, or there are more directions than dimensions.
        """
        self._check_rows(text, None)
        if image.shape != text.shape:
            raise ValueError(
                f"images have shape {tuple(image.shape)}, texts {tuple(text.shape)}; pairs need "
                "equal shapes"
            )
        directions = self.settings.directions or self.dimension
        if directions > self.dimension:
            raise ValueError(
                f"align.oracle.directions is {directions}, but the embeddings have only "
                f"{self.dimension} dimensions; lower it, or use null for all"
            )
        image, text = (rows.to(self._device, torch.float64) for rows in (image, text))
        centred = text - text.mean(dim=0)
        residual = image - image.mean(dim=0) - centred
        covariance = Moments.of(residual).covariance
        vectors = torch.linalg.eigh(covariance).eigenvectors[:, self.dimension - directions :]
        vectors = vectors.to(self._device)
        removed = residual @ vectors @ vectors.T
        moved = centred + image.mean(dim=0) + self.settings.share * removed
        return normalise(moved).to(torch.float32)
