"""Drift: nothing between samples of one distribution, the closed form between two."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.geometry.drift import (
    Drift,
    RadialBins,
    RadialCounts,
    TextStatistics,
    measure_drift,
)
from pipeline.geometry.moments import Moments
from pipeline.geometry.polar import to_polar
from tests.geometry.samples import gaussian, rotation

WIDTH = 24
SCALES = torch.linspace(1.5, 0.1, WIDTH, dtype=torch.float64)


def sample(rows: int, seed: int) -> Tensor:
    return gaussian(rows, WIDTH, seed) * SCALES + 0.3


REFERENCE = sample(60_000, 0)
BINS = RadialBins.of(Moments.of(REFERENCE))
FITTED = TextStatistics.of(REFERENCE, BINS)


def drift(found: Tensor) -> Drift:
    return measure_drift(FITTED, TextStatistics.of(found, BINS))


@pytest.mark.parametrize("rows", [50, 500, 5000])
def test_samples_of_the_same_text_show_none_however_few(rows: int):
    """Without the correction a sample of 50 would lie 0.14, 0.5 and 0.12 away."""
    found = [drift(sample(rows, seed)) for seed in range(1, 21)]
    for name, bound in (("centroid", 0.06), ("covariance", 0.16), ("radial", 0.03)):
        assert sum(getattr(one, name) for one in found) / 20 < bound * math.sqrt(50 / rows)
    assert all(one.rows == rows for one in found)


def test_a_shift_of_the_mean_is_measured_in_spreads_of_the_text():
    direction = torch.nn.functional.normalize(gaussian(1, WIDTH, 9), dim=1)
    spread = float(SCALES.square().sum().sqrt())
    found = drift(sample(20_000, 3) + 0.25 * spread * direction)
    assert found.centroid == pytest.approx(0.25, abs=0.01)
    assert found.covariance < 0.03


def test_another_scale_changes_the_radii_and_not_the_shape():
    """Two Rayleigh distributions of scales 1 and s part most at r^2 = 4 s^2 ln s / (s^2 - 1)."""
    mean = torch.full((WIDTH,), 0.3, dtype=torch.float64)
    found = drift((sample(20_000, 3) - mean) * 1.3 + mean)
    assert found.covariance < 0.03
    assert found.centroid < 0.02
    s = 1.3
    squared = 4 * s * s * math.log(s) / (s * s - 1)
    expected = math.exp(-squared / (2 * s * s)) - math.exp(-squared / 2)
    assert found.radial == pytest.approx(expected, abs=0.02)


def test_another_shape():
    turned = (sample(20_000, 3) - 0.3) @ rotation(WIDTH, 4) + 0.3
    covariance = torch.diag(SCALES.square()) / SCALES.square().sum()
    other = rotation(WIDTH, 4).T @ covariance @ rotation(WIDTH, 4)
    expected = float((other - covariance).norm() / covariance.norm())
    assert drift(turned).covariance == pytest.approx(expected, abs=0.02)
    assert drift(turned).centroid < 0.02


def test_merged_statistics_are_those_of_all_rows():
    parts = [TextStatistics.of(part, BINS) for part in sample(3000, 5).split(700)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    whole = TextStatistics.of(sample(3000, 5), BINS)
    assert merged.radii is not None
    assert whole.radii is not None
    assert torch.equal(merged.radii.counts, whole.radii.counts)
    assert merged.radii.rows == 3000
    torch.testing.assert_close(merged.moments.covariance, whole.moments.covariance)
    again = TextStatistics.from_tensors(merged.tensors())
    assert measure_drift(FITTED, again) == measure_drift(FITTED, merged)


def test_bins_are_about_equally_full_and_the_same_again_from_tensors():
    """Each plane pairs two nearby eigenvalues, so its radii are nearly Rayleigh."""
    counts = BINS.count(REFERENCE).counts.to(torch.float64) / len(REFERENCE)
    assert counts.shape == (12, 64)
    assert float((counts[:10] - 1 / 64).abs().max()) < 0.004
    again = RadialBins.from_tensors(BINS.tensors())
    assert again.digest == BINS.digest
    assert RadialBins.of(Moments.of(sample(500, 8))).digest != BINS.digest


def test_tied_rows_fall_in_the_same_bins_on_both_sides():
    """A corpus of repeated captions has no radial drift from itself."""
    few = sample(7, 2).repeat(300, 1)
    bins = RadialBins.of(Moments.of(few))
    reference = TextStatistics.of(few, bins)
    assert measure_drift(reference, TextStatistics.of(few[:700], bins)).radial == 0.0


def test_without_bins_the_radii_are_unknown():
    plain = TextStatistics.of(sample(100, 1), None)
    assert measure_drift(FITTED, plain).radial is None
    assert TextStatistics.from_tensors(plain.tensors()).radii is None


def test_degenerate_texts():
    single = TextStatistics.of(REFERENCE[:1], BINS)
    assert measure_drift(FITTED, single).covariance == 0.0
    assert measure_drift(single, single).centroid == 0.0
    assert measure_drift(single, FITTED).centroid == math.inf
    with pytest.raises(ValueError, match="does not exist"):
        measure_drift(FITTED, TextStatistics(Moments.zero(WIDTH)))
    with pytest.raises(ValueError, match=r"width 3 cannot have drifted .* width 24"):
        measure_drift(FITTED, TextStatistics.of(gaussian(9, 3, 0), None))


def test_counts_of_other_bins_do_not_merge():
    with pytest.raises(AssertionError, match="different bins"):
        RadialCounts(torch.ones(2, 4)).merge(RadialCounts(torch.ones(3, 4)))


@pytest.mark.parametrize("rank", [WIDTH, 8])
def test_counts_are_those_of_double_precision(rank: int):
    """A plane without variance counts in its last bin, as it does in polar coordinates."""
    rows = sample(4_000, 5)
    rows[:, rank:] = 0.3
    bins = RadialBins.of(Moments.of(rows))
    radius = to_polar((rows - bins.mean) @ bins.basis).radius.T.contiguous()
    found = torch.searchsorted(bins.edges.contiguous(), radius)
    expected = torch.zeros_like(bins.count(rows).counts)
    expected.scatter_add_(1, found, torch.ones_like(found))
    moved = (bins.count(rows.to(torch.float32)).counts - expected).abs().sum(dim=1)
    assert int(moved.max()) <= 8  # of 4,000: those that lie at an edge to within a rounding
