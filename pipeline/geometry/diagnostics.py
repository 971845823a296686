"""The metrics of the modality gap, of the target side and of the source side.

Inputs are unit rows; `image`, `text` and `substitute` hold the same n pairs in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.geometry.frame import joint_structure_matrix
from pipeline.geometry.moments import Moments
from pipeline.geometry.neighbours import match_ranks, nearest_neighbours

NEIGHBOURS = 20
_LABEL_PERMUTATIONS = 10
_SIMILARITY_PAIRS = 200_000


def _descending_eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)


def _top_vectors(covariance: Tensor, count: int) -> Tensor:
    return torch.linalg.eigh(covariance).eigenvectors.flip(dims=[1])[:, :count]


def spectral_correlation(image: Moments, text: Moments) -> float:
    """C_lambda: Pearson correlation of the sorted log eigenvalues of Sigma_x and Sigma_y.

    Eigenvalues that are zero to rounding (repeated rows) count as the rounding error.
    """
    kept = min(image.count - 1, text.count - 1, image.dimension)
    precision = torch.finfo(torch.float64).eps
    spectra = []
    for moments in (image, text):
        eigenvalues = _descending_eigenvalues(moments.covariance)[:kept]
        spectra.append(eigenvalues.clamp(min=precision * float(eigenvalues[0])).log())
    return float(torch.corrcoef(torch.stack(spectra))[0, 1])


def subspace_overlap(image_covariance: Tensor, text_covariance: Tensor, size: int) -> float:
    """O_q = ||U_x,q^T U_y,q||_F^2 / q of the top-q eigenspaces; chance is q / d."""
    cross = _top_vectors(image_covariance, size).T @ _top_vectors(text_covariance, size)
    return float(cross.square().sum() / size)


def anisotropy(second_moment: Tensor) -> float:
    """A_r = lambda_max / (tr / d) of a residual second moment (d, d); 1 when isotropic."""
    mean_eigenvalue = torch.trace(second_moment) / second_moment.shape[0]
    return float(torch.linalg.eigvalsh(second_moment)[-1] / mean_eigenvalue)


def cumulative_energy(second_moment: Tensor, size: int) -> float:
    """E(K): share of the trace that the top-K eigenvalues hold."""
    eigenvalues = _descending_eigenvalues(second_moment)
    return float(eigenvalues[:size].sum() / eigenvalues.sum())


def gap_metrics(image: Tensor, text: Tensor, rank: int | None = None) -> dict[str, float]:
    """Return the gap diagnostics of n pairs before alignment, `image` and `text` (n, d).

    Keys: c_lambda, g_mu, g_sigma, residual_norm (D), residual_ratio, a_r (centred), d_eff,
    d_eff_share, `o_q` and its `chance_q` for a ladder of q, `e_K`, and eta_u of the top-`rank`
    joint subspace (default d / 16, even).
    """
    image, text = image.to(torch.float64), text.to(torch.float64)
    dimension = image.shape[1]
    image_moments, text_moments = Moments.of(image), Moments.of(text)
    image_covariance, text_covariance = image_moments.covariance, text_moments.covariance
    residual = (image - image_moments.mean) - (text - text_moments.mean)
    residual_covariance = Moments.of(residual).covariance
    residual_norm = float(residual.norm(dim=1).mean())
    trace = torch.trace(residual_covariance)
    effective = float(trace**2 / residual_covariance.square().sum())
    rank = rank or max(2, 2 * (dimension // 32))
    subspace = _top_vectors(joint_structure_matrix(text_covariance, image_covariance), rank)
    inside = torch.trace(subspace.T @ residual_covariance @ subspace)
    metrics = {
        "c_lambda": spectral_correlation(image_moments, text_moments),
        "g_mu": float((image_moments.mean - text_moments.mean).norm()),
        "g_sigma": float((image_covariance - text_covariance).norm() / image_covariance.norm()),
        "residual_norm": residual_norm,
        "residual_ratio": residual_norm / float((image - text).norm(dim=1).mean()),
        "a_r": anisotropy(residual_covariance),
        "d_eff": effective,
        "d_eff_share": effective / dimension,
        "eta_u": float(inside / trace),
    }
    for size in sorted({max(1, dimension // divisor) for divisor in (40, 20, 10, 5)}):
        metrics[f"o_{size}"] = subspace_overlap(image_covariance, text_covariance, size)
        metrics[f"chance_{size}"] = size / dimension
        metrics[f"e_{size}"] = cumulative_energy(residual_covariance, size)
    return metrics


def _binary_entropy(share: Tensor) -> Tensor:
    clamped = share.clamp(1e-12, 1 - 1e-12)
    entropy = -(clamped * clamped.log2() + (1 - clamped) * (1 - clamped).log2())
    return torch.where((share <= 0) | (share >= 1), torch.zeros_like(entropy), entropy)


def local_mixing(
    image: Tensor, substitute: Tensor, neighbours: int = NEIGHBOURS, seed: int = 0
) -> tuple[float, float]:
    """Return (M_Z, M_X): how far neighbourhoods mix both clouds, 1 when labels are random.

    In Q = X u Z the entropy of the share of images among a point's k nearest others is averaged
    over Z and over X, divided by its mean under random permutations of the labels.
    """
    rows = image.shape[0]
    nearest = nearest_neighbours(torch.cat((image, substitute)), neighbours)
    is_image = torch.cat((torch.ones(rows), torch.zeros(substitute.shape[0])))
    entropy = _binary_entropy(is_image[nearest].mean(dim=1))
    generator = torch.Generator().manual_seed(seed)
    reference = torch.stack(
        [
            _binary_entropy(
                is_image[torch.randperm(is_image.shape[0], generator=generator)][nearest].mean(
                    dim=1
                )
            ).mean()
            for _ in range(_LABEL_PERMUTATIONS)
        ]
    ).mean()
    return float(entropy[rows:].mean() / reference), float(entropy[:rows].mean() / reference)


def similarity_correlation(text: Tensor, substitute: Tensor, seed: int = 0) -> float:
    """Psi: correlation of <y_i, y_j> with <z_i, z_j> over random pairs i != j."""
    rows = text.shape[0]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(rows, (_SIMILARITY_PAIRS,), generator=generator)
    shift = torch.randint(1, rows, (_SIMILARITY_PAIRS,), generator=generator)
    second = (first + shift) % rows

    def similarities(embeddings: Tensor) -> Tensor:
        return torch.cat(
            [
                (embeddings[a] * embeddings[b]).sum(dim=1, dtype=torch.float64)
                for a, b in zip(first.split(10_000), second.split(10_000), strict=True)
            ]
        )

    pairs = torch.stack((similarities(text), similarities(substitute)))
    return float(torch.corrcoef(pairs)[0, 1])


def neighbourhood_overlap(text: Tensor, substitute: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Omega: mean share of the k-neighbourhood in Y that is kept in Z."""
    before = nearest_neighbours(text, neighbours)
    after = nearest_neighbours(substitute, neighbours)
    common = (before.unsqueeze(2) == after.unsqueeze(1)).any(dim=2)
    return float(common.to(torch.float64).mean())


def alignment_metrics(
    image: Tensor,
    text: Tensor,
    substitute: Tensor,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> dict[str, float]:
    """Return every metric of one method on n held-out pairs, all inputs (n, d) unit rows.

    Keys: delta_mu, m_z, m_x, a_r (residuals x - z, not centred), phi, psi, omega, retrieval_r1,
    retrieval_r5, retrieval_r10 (substitute to image) and paired_cosine.
    """
    image, text, substitute = (
        embeddings.to(torch.float32) for embeddings in (image, text, substitute)
    )
    residual = (image - substitute).to(torch.float64)
    second_moment = residual.T @ residual / residual.shape[0]
    mixing_substitute, mixing_image = local_mixing(image, substitute, neighbours, seed)
    ranks = match_ranks(substitute, image)
    centroid_shift = substitute.mean(dim=0, dtype=torch.float64) - image.mean(
        dim=0, dtype=torch.float64
    )
    return {
        "delta_mu": float(centroid_shift.norm()),
        "m_z": mixing_substitute,
        "m_x": mixing_image,
        "a_r": anisotropy(second_moment),
        "phi": float((text * substitute).sum(dim=1, dtype=torch.float64).mean()),
        "psi": similarity_correlation(text, substitute, seed),
        "omega": neighbourhood_overlap(text, substitute, neighbours),
        **{
            f"retrieval_r{depth}": float((ranks < depth).to(torch.float64).mean())
            for depth in (1, 5, 10)
        },
        "paired_cosine": float((image * substitute).sum(dim=1, dtype=torch.float64).mean()),
    }
