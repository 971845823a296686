"""The gap before alignment: against numpy, known Gaussian clouds and chance."""

import numpy as np
import pytest
import torch

from pipeline.geometry.diagnostics import (
    Gap,
    anisotropy,
    gap_metrics,
    spectral_correlation,
    subspace_overlap,
)
from pipeline.geometry.frame import choose_rank
from pipeline.geometry.moments import Moments
from tests.geometry.paired import WIDTH, pairs
from tests.geometry.samples import gaussian, rotation, unit_rows


@pytest.mark.parametrize("rows", [30, 200])
def test_gap_metrics_against_numpy(rows):
    image, text, _ = pairs(rows)
    found = gap_metrics(image, text)
    x, y = image.numpy(), text.numpy()
    sigma_x, sigma_y = (np.cov(cloud, rowvar=False, ddof=0) for cloud in (x, y))
    residual = (x - x.mean(0)) - (y - y.mean(0))
    sigma_r = residual.T @ residual / rows
    spectrum = np.sort(np.linalg.eigvalsh(sigma_r))[::-1]
    kept = min(rows - 1, WIDTH)
    logs = [np.log(np.sort(np.linalg.eigvalsh(s))[::-1][:kept]) for s in (sigma_x, sigma_y)]
    joint = torch.from_numpy(sigma_x + sigma_y)
    top = np.linalg.svd(joint.numpy())[0][:, : choose_rank(joint, rows)]
    residual_norm = np.linalg.norm(residual, axis=1).mean()
    expected = {
        "c_lambda": np.corrcoef(*logs)[0, 1],
        "g_mu": np.linalg.norm(x.mean(0) - y.mean(0)),
        "g_sigma": np.linalg.norm(sigma_x - sigma_y) / np.linalg.norm(sigma_x),
        "pair_distance": np.linalg.norm(x - y, axis=1).mean(),
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


def test_overlaps_end_where_eigenvectors_are_arbitrary():
    rows, width = 30, 400
    image, text = (unit_rows(rows, width, seed) for seed in (0, 1))
    sizes = {name for name in gap_metrics(image, text) if name.startswith("o_")}
    assert sizes == {"o_10", "o_20"}  # of 10, 20, 40 and 80


def test_isotropic_residuals_have_no_anisotropy():
    residual = gaussian(40_000, 8, 0)
    assert anisotropy(residual.T @ residual / 40_000) == pytest.approx(1, abs=0.04)
    assert anisotropy(torch.diag(torch.tensor([9.0, 1.0, 1.0, 1.0]))) == pytest.approx(3)


def test_random_subspaces_overlap_by_chance():
    spectrum = torch.diag(torch.linspace(2, 1, WIDTH).double())
    turns = [rotation(WIDTH, seed) for seed in range(40)]
    covariances = [turn @ spectrum @ turn.T for turn in turns]
    for q in (4, 10):
        overlaps = [
            subspace_overlap(a, b, q)
            for a, b in zip(covariances[::2], covariances[1::2], strict=True)
        ]
        assert np.mean(overlaps) == pytest.approx(q / WIDTH, rel=0.15)
        assert subspace_overlap(covariances[0], covariances[0], q) == pytest.approx(1)


def test_spectral_correlation_survives_repeated_rows():
    image, text = (cloud[:8].repeat(10, 1) for cloud in pairs()[:2])
    assert 0.9 < gap_metrics(image, text)["c_lambda"] <= 1
    assert gap_metrics(image, -image)["c_lambda"] == pytest.approx(1)


def test_spectral_correlation_is_that_of_the_logarithms():
    falling = torch.tensor([100.0, 10.0, 1.0, 0.1]).double()
    assert spectral_correlation(falling, 3 * falling**0.5) == pytest.approx(1)
    assert spectral_correlation(falling, falling.flip(0)) == pytest.approx(-1)


def test_the_gap_of_known_gaussian_clouds():
    rows, shift = 40_000, torch.zeros(8).double()
    shift[2] = 0.7
    image_scale, text_scale = torch.linspace(2, 0.5, 8).double(), torch.full((8,), 0.4).double()
    image = gaussian(rows, 8, 0) * image_scale + shift
    text = gaussian(rows, 8, 1) * text_scale
    found = gap_metrics(image, text)
    residual = image_scale**2 + text_scale**2
    assert found["g_mu"] == pytest.approx(0.7, abs=0.03)
    expected = (image_scale**2 - text_scale**2).norm() / (image_scale**2).norm()
    assert found["g_sigma"] == pytest.approx(float(expected), rel=0.03)
    assert found["a_r"] == pytest.approx(float(residual[0] / residual.mean()), rel=0.03)
    effective = float(residual.sum() ** 2 / residual.square().sum())
    assert found["d_eff"] == pytest.approx(effective, rel=0.03)
    assert found["e_1"] == pytest.approx(float(residual[0] / residual.sum()), rel=0.03)


def test_a_mere_shift_leaves_no_residual():
    image = gaussian(100, 6, 0)
    found = gap_metrics(image, image + 0.5)
    assert found["residual_norm"] == pytest.approx(0, abs=1e-12)
    assert found["residual_ratio"] == pytest.approx(0, abs=1e-12)
    assert found["g_mu"] == pytest.approx(0.5 * 6**0.5)
    assert (found["c_lambda"], found["o_1"]) == pytest.approx((1, 1))


def test_equal_clouds_have_no_gap():
    image = gaussian(100, 6, 0)
    found = gap_metrics(image, image)
    assert (found["g_mu"], found["residual_norm"], found["residual_ratio"]) == (0, 0, 0)
    assert (found["a_r"], found["d_eff_share"]) == pytest.approx((1, 1))


def test_a_gap_holds_the_whole_ladder_of_overlaps():
    image, text, _ = pairs(200)
    gap = Gap.of(image, text)
    covariances = [Moments.of(cloud).covariance for cloud in (image, text)]
    for size in (1, 3, 20):
        assert float(gap.overlaps[size - 1]) == pytest.approx(subspace_overlap(*covariances, size))
    assert float(gap.overlaps[-1]) == pytest.approx(1)
    assert Gap.of(image[:30], text[:30]).image_spectrum.shape == (29,)


def test_overlaps_of_independent_clouds_are_chance():
    gap = Gap.of(unit_rows(3000, WIDTH, 0), unit_rows(3000, WIDTH, 1))
    sizes = torch.arange(1, WIDTH + 1)
    late = sizes >= 8
    chance = sizes[late] / WIDTH
    torch.testing.assert_close(gap.overlaps[late], chance.double(), rtol=0.25, atol=0.0)
