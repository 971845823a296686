import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from pipeline.geometry.diagnostics import (
    alignment_metrics,
    anisotropy,
    cumulative_energy,
    gap_metrics,
    local_mixing,
    neighbourhood_overlap,
    similarity_correlation,
    spectral_correlation,
    subspace_overlap,
)
from pipeline.geometry.frame import mixing_matrix
from pipeline.geometry.moments import Moments
from tests.geometry.samples import gaussian, unit_rows

ROWS, WIDTH, K = 60, 40, 5


def normalised(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def pairs(rows=ROWS, width=WIDTH):
    """Images, texts and substitutes with common meaning, each with noise and an offset."""
    scale = torch.linspace(1.5, 0.2, width)
    common = gaussian(rows, width, 0) * scale
    image = normalised(common + 0.9 * gaussian(rows, width, 1) + 0.3)
    text = normalised(common + 1.1 * gaussian(rows, width, 2) - 0.4)
    return image, text, normalised(text + 0.15 + 0.05 * gaussian(rows, width, 3))


def entropy(share):
    if share in (0, 1):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def brute_neighbours(points, count):
    found = []
    for i in range(len(points)):
        others = sorted(
            (j for j in range(len(points)) if j != i), key=lambda j: -points[i] @ points[j]
        )
        found.append(set(others[:count]))
    return found


@pytest.mark.parametrize("rows", [30, 200])
def test_gap_metrics_against_numpy(rows):
    image, text, _ = pairs(rows)
    found = gap_metrics(image, text, rank=6)
    x, y = image.numpy(), text.numpy()
    sigma_x, sigma_y = (np.cov(cloud, rowvar=False, ddof=0) for cloud in (x, y))
    residual = (x - x.mean(0)) - (y - y.mean(0))
    sigma_r = residual.T @ residual / rows
    spectrum = np.sort(np.linalg.eigvalsh(sigma_r))[::-1]
    kept = min(rows - 1, WIDTH)
    logs = [np.log(np.sort(np.linalg.eigvalsh(s))[::-1][:kept]) for s in (sigma_x, sigma_y)]
    top = np.linalg.svd(sigma_x + sigma_y)[0][:, :6]
    residual_norm = np.linalg.norm(residual, axis=1).mean()
    expected = {
        "c_lambda": np.corrcoef(*logs)[0, 1],
        "g_mu": np.linalg.norm(x.mean(0) - y.mean(0)),
        "g_sigma": np.linalg.norm(sigma_x - sigma_y) / np.linalg.norm(sigma_x),
        "residual_norm": residual_norm,
        "residual_ratio": residual_norm / np.linalg.norm(x - y, axis=1).mean(),
        "a_r": spectrum[0] / (spectrum.sum() / WIDTH),
        "d_eff": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "d_eff_share": spectrum.sum() ** 2 / (spectrum**2).sum() / WIDTH,
        "eta_u": np.trace(top @ top.T @ sigma_r) / spectrum.sum(),
    }
    for q in (1, 2, 4, 8):
        u, v = (np.linalg.svd(sigma)[0][:, :q] for sigma in (sigma_x, sigma_y))
        expected[f"o_{q}"] = (np.linalg.svd(u.T @ v)[1] ** 2).sum() / q
        expected[f"chance_{q}"] = q / WIDTH
        expected[f"e_{q}"] = spectrum[:q].sum() / spectrum.sum()
    assert found == pytest.approx(expected, rel=1e-8)


def test_alignment_metrics_against_plain_loops():
    image, text, substitute = pairs()
    found = alignment_metrics(image, text, substitute, K)
    x, y, z = image.numpy(), text.numpy(), substitute.numpy()
    second_moment = sum(np.outer(r, r) for r in x - z) / ROWS
    spectrum = np.linalg.eigvalsh(second_moment)
    similarity = z @ x.T
    ranks = np.array([(similarity[i] > similarity[i, i]).sum() for i in range(ROWS)])
    before, after = brute_neighbours(y, K), brute_neighbours(z, K)
    every = list(itertools.combinations(range(ROWS), 2))
    psi = np.corrcoef([y[i] @ y[j] for i, j in every], [z[i] @ z[j] for i, j in every])[0, 1]
    exact = {
        "delta_mu": np.linalg.norm(z.mean(0) - x.mean(0)),
        "a_r": spectrum[-1] / spectrum.mean(),
        "phi": np.mean([y[i] @ z[i] for i in range(ROWS)]),
        "omega": np.mean([len(before[i] & after[i]) / K for i in range(ROWS)]),
        "retrieval_r1": (ranks < 1).mean(),
        "retrieval_r5": (ranks < 5).mean(),
        "retrieval_r10": (ranks < 10).mean(),
        "paired_cosine": np.mean([x[i] @ z[i] for i in range(ROWS)]),
    }
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=1e-5)
    assert 0 < exact["retrieval_r1"] < exact["retrieval_r5"] < exact["retrieval_r10"]
    assert found["psi"] == pytest.approx(psi, abs=0.01)
    assert found.keys() == exact.keys() | {"psi", "m_z", "m_x"}


def test_local_mixing_against_plain_loops():
    image, _, substitute = pairs()
    union = np.concatenate((image, substitute))
    nearest = brute_neighbours(union, K)
    mixed = [entropy(sum(j < ROWS for j in near) / K) for near in nearest]
    # Under random labels the K others of a point hold a hypergeometric number of images.
    reference = np.mean(
        [
            sum(
                hypergeom.pmf(hits, 2 * ROWS - 1, images, K) * entropy(hits / K)
                for hits in range(K + 1)
            )
            for images in (ROWS - 1, ROWS)
        ]
    )
    m_z, m_x = local_mixing(image, substitute, K)
    assert m_z == pytest.approx(np.mean(mixed[ROWS:]) / reference, rel=0.05)
    assert m_z / m_x == pytest.approx(np.mean(mixed[ROWS:]) / np.mean(mixed[:ROWS]))
    assert local_mixing(image, substitute, K) == (m_z, m_x)


def test_two_samples_of_one_cloud_mix_and_separate_clouds_do_not():
    first, second = unit_rows(600, 6, 0), unit_rows(600, 6, 1)
    assert local_mixing(first, second) == pytest.approx((1, 1), abs=0.03)
    offset = torch.zeros(6).double()
    offset[0] = 5
    assert local_mixing(normalised(first + offset), normalised(second - offset)) == (0, 0)


def test_identity_keeps_everything():
    image, text, _ = pairs()
    found = alignment_metrics(image, text, text, K)
    assert found["phi"] == pytest.approx(1)
    assert found["psi"] == pytest.approx(1)
    assert found["omega"] == 1
    assert similarity_correlation(text, text) == pytest.approx(1)
    assert neighbourhood_overlap(text, text, K) == 1


def test_identical_clouds_are_retrieved_whole():
    image, text, _ = pairs()
    found = alignment_metrics(image, text, image, K)
    for name in ("retrieval_r1", "retrieval_r5", "retrieval_r10", "paired_cosine"):
        assert found[name] == pytest.approx(1)
    assert found["delta_mu"] == pytest.approx(0, abs=1e-7)


def test_metrics_ignore_the_order_of_pairs_and_a_common_rotation():
    image, text, substitute = pairs()
    found = alignment_metrics(image, text, substitute, K)
    rotation = mixing_matrix("random", WIDTH, 0)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    moved = alignment_metrics(*(rows[order] @ rotation for rows in (image, text, substitute)), K)
    # Psi and the mixing reference are drawn by position.
    assert moved == pytest.approx(found, rel=0.06)
    exact = found.keys() - {"psi", "m_z", "m_x"}
    assert {n: moved[n] for n in exact} == pytest.approx({n: found[n] for n in exact}, rel=1e-4)


def test_isotropic_residuals_have_no_anisotropy():
    residual = gaussian(40_000, 8, 0)
    assert anisotropy(residual.T @ residual / 40_000) == pytest.approx(1, abs=0.04)
    assert anisotropy(torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0]))) == pytest.approx(3)
    assert cumulative_energy(torch.diag(torch.tensor([1.0, 6.0, 1.0])), 1) == pytest.approx(0.75)


def test_random_subspaces_overlap_by_chance():
    spectrum = torch.diag(torch.linspace(2, 1, WIDTH).double())
    rotations = [mixing_matrix("random", WIDTH, seed) for seed in range(40)]
    covariances = [rotation @ spectrum @ rotation.T for rotation in rotations]
    for q in (4, 10):
        overlaps = [
            subspace_overlap(a, b, q)
            for a, b in zip(covariances[::2], covariances[1::2], strict=True)
        ]
        assert np.mean(overlaps) == pytest.approx(q / WIDTH, rel=0.15)
        assert subspace_overlap(covariances[0], covariances[0], q) == pytest.approx(1)


def test_spectral_correlation_survives_repeated_rows():
    image, text = (cloud[:8].repeat(10, 1) for cloud in pairs()[:2])
    assert 0.9 < spectral_correlation(Moments.of(image), Moments.of(text)) <= 1
    assert spectral_correlation(Moments.of(image), Moments.of(image)) == pytest.approx(1)
