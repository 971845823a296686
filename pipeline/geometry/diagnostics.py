"""The gap before alignment: spectra, subspaces, means and residuals of pairs.

Inputs are unit rows; `image` and `text` hold the same n pairs in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.geometry.frame import choose_rank, dominant_basis, joint_structure_matrix
from pipeline.geometry.moments import Moments

_TINY = 1e-30  # where no residual is left at all, it counts as isotropic


def _descending_eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)


def _descending_vectors(covariance: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0), vectors.flip(dims=[1])


def spectral_correlation(image_spectrum: Tensor, text_spectrum: Tensor) -> float:
    """C_lambda: Pearson correlation of the log eigenvalues (q,) of Sigma_x and Sigma_y, sorted.

    Eigenvalues that are zero to rounding (repeated rows) count as the rounding error.
    """
    precision = torch.finfo(torch.float64).eps
    logs = [
        spectrum.clamp(min=max(precision * float(spectrum[0]), _TINY)).log()
        for spectrum in (image_spectrum, text_spectrum)
    ]
    return float(torch.corrcoef(torch.stack(logs))[0, 1])


def _overlaps(image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
    """Return O_q for q = 1 .. k of eigenvectors (d, k) in falling order, shape (k,)."""
    cross = (image_vectors.T @ text_vectors).square()
    inside = torch.diagonal(cross.cumsum(dim=0).cumsum(dim=1))
    return inside / torch.arange(1, cross.shape[0] + 1, dtype=cross.dtype)


def subspace_overlap(image_covariance: Tensor, text_covariance: Tensor, size: int) -> float:
    """O_q = ||U_x,q^T U_y,q||_F^2 / q of the top-q eigenspaces; chance is q / d."""
    image, text = (
        _descending_vectors(covariance)[1][:, :size]
        for covariance in (image_covariance, text_covariance)
    )
    return float(_overlaps(image, text)[-1])


def anisotropy(second_moment: Tensor) -> float:
    """A_r = lambda_max / (tr / d) of a residual second moment (d, d); 1 when isotropic."""
    spectrum = _descending_eigenvalues(second_moment)
    return float(spectrum[0] / spectrum.mean())


@dataclass(frozen=True)
class Gap:
    """What a gap is made of, decomposed once for both its metrics and its curves.

    Spectra fall: `image_spectrum` and `text_spectrum` are the first min(n - 1, d) eigenvalues of
    the centred covariances, `residual_spectrum` (d,) those of the residual's. `overlaps` holds O_q
    for q = 1 .. min(n - 1, d): past that eigenvectors are arbitrary. `inside` is the residual's
    energy in the dominant subspace U of Sigma_x + Sigma_y, of rank auto.
    """

    dimension: int
    image_spectrum: Tensor
    text_spectrum: Tensor
    overlaps: Tensor
    mean_distance: float
    covariance_distance: float
    residual_norm: float
    pair_distance: float
    residual_spectrum: Tensor
    inside: float

    @classmethod
    def of(cls, image: Tensor, text: Tensor) -> Gap:
        """Return the gap of n pairs, `image` and `text` (n, d)."""
        image_moments, text_moments = Moments.of(image), Moments.of(text)
        image_covariance, text_covariance = image_moments.covariance, text_moments.covariance
        image_values, image_vectors = _descending_vectors(image_covariance)
        text_values, text_vectors = _descending_vectors(text_covariance)
        structure = joint_structure_matrix(text_covariance, image_covariance)
        subspace = dominant_basis(structure, choose_rank(structure, image_moments.count))
        difference = image - text
        residual = Moments.of(difference)
        residual_covariance = residual.covariance + _TINY * torch.eye(residual.dimension)
        shift = residual.mean.to(difference.dtype)
        kept = min(image_moments.count - 1, image_moments.dimension)
        distance = (image_covariance - text_covariance).norm() / image_covariance.norm()
        return cls(
            dimension=image_moments.dimension,
            image_spectrum=image_values[:kept],
            text_spectrum=text_values[:kept],
            overlaps=_overlaps(image_vectors[:, :kept], text_vectors[:, :kept]),
            mean_distance=float(residual.mean.norm()),
            covariance_distance=float(distance),
            residual_norm=_mean_norm(difference - shift),
            pair_distance=_mean_norm(difference),
            residual_spectrum=_descending_eigenvalues(residual_covariance),
            inside=float(torch.trace(subspace.T @ residual_covariance @ subspace)),
        )

    def metrics(self) -> dict[str, float]:
        """Return the gap diagnostics.

        Keys: c_lambda, g_mu, g_sigma, pair_distance (mean ||x - y||), residual_norm (D),
        residual_ratio, a_r (centred), d_eff, d_eff_share, `o_q` and its `chance_q` for a ladder of
        q, `e_K` (share of the residual's top-K eigenvalues), and eta_u of the joint subspace of
        rank auto.
        """
        dimension, spectrum = self.dimension, self.residual_spectrum
        effective = float(spectrum.sum() ** 2 / spectrum.square().sum())
        metrics = {
            "c_lambda": spectral_correlation(self.image_spectrum, self.text_spectrum),
            "g_mu": self.mean_distance,
            "g_sigma": self.covariance_distance,
            "pair_distance": self.pair_distance,
            "residual_norm": self.residual_norm,
            "residual_ratio": self.residual_norm / max(self.pair_distance, _TINY),
            "a_r": float(spectrum[0] / spectrum.mean()),
            "d_eff": effective,
            "d_eff_share": effective / dimension,
            "eta_u": self.inside / float(spectrum.sum()),
        }
        for size in sorted({max(1, dimension // divisor) for divisor in (40, 20, 10, 5)}):
            if size <= self.overlaps.shape[0]:
                metrics[f"o_{size}"] = float(self.overlaps[size - 1])
                metrics[f"chance_{size}"] = size / dimension
            metrics[f"e_{size}"] = float(spectrum[:size].sum() / spectrum.sum())
        return metrics


def _mean_norm(rows: Tensor) -> float:
    return float(rows.norm(dim=1).mean(dtype=torch.float64))


def gap_metrics(image: Tensor, text: Tensor) -> dict[str, float]:
    """Return the gap diagnostics of n pairs, `image` and `text` (n, d); see `Gap.metrics`."""
    return Gap.of(image, text).metrics()
