"""Ledoit-Wolf shrinkage from moments alone, against the formula on the rows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry.moments import Moments
from pipeline.geometry.shrinkage import covariance_of, ledoit_wolf_intensity
from tests.geometry.paired import normalised
from tests.geometry.samples import gaussian, unit_rows

WIDTH = 12


def anisotropic(rows, width=WIDTH, seed=0, centre=0.4):
    spread = torch.logspace(0, -1, width, dtype=torch.float64)
    return normalised(gaussian(rows, width, seed) * spread + centre)


def plain_intensity(rows):
    """Ledoit and Wolf 2004, section 3.3, with the sum over rows written out."""
    count, width = rows.shape
    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred / count
    mean_variance = np.trace(covariance) / width
    spread = ((covariance - mean_variance * np.eye(width)) ** 2).sum() / width
    error = sum(((np.outer(row, row) - covariance) ** 2).sum() / width for row in centred)
    return min(error / count**2, spread) / spread


@given(
    rows=st.integers(2, 60), width=st.integers(2, 20), centre=st.floats(0, 2), seed=st.integers(0)
)
def test_intensity_is_that_of_the_formula_on_unit_rows(rows, width, centre, seed):
    sample = anisotropic(rows, width, seed % 2**60, centre)
    found = ledoit_wolf_intensity(Moments.of(sample))
    assert 0 <= found <= 1
    assert found == pytest.approx(plain_intensity(sample.numpy()), rel=1e-9, abs=1e-12)


def test_merged_moments_are_enough():
    sample = anisotropic(70)
    merged = Moments.of(sample[:20]).merge(Moments.of(sample[20:]))
    expected = ledoit_wolf_intensity(Moments.of(sample))
    assert ledoit_wolf_intensity(merged) == pytest.approx(expected, rel=1e-12)


def test_more_samples_are_shrunk_less():
    sample = anisotropic(8000)
    counts = (10, 40, 160, 640, 2560, 8000)
    shares = [ledoit_wolf_intensity(Moments.of(sample[:count])) for count in counts]
    assert all(fewer > more for fewer, more in pairwise(shares))
    assert shares[0] > 0.1
    # In the end it falls as 1 / n.
    assert shares[-1] * 8000 == pytest.approx(shares[-2] * 2560, rel=0.1)
    assert shares[-1] < 2e-3


def test_isotropic_rows_are_shrunk_nearly_whole_and_equal_rows_not_at_all():
    assert ledoit_wolf_intensity(Moments.of(unit_rows(300, WIDTH, 0))) > 0.7
    equal = Moments.of(torch.eye(WIDTH, dtype=torch.float64)[:1].repeat(9, 1))
    assert ledoit_wolf_intensity(equal) == 0
    assert not covariance_of(equal, "ledoit-wolf").any()


@pytest.mark.parametrize("rows", [3, 8, 500])
def test_the_shrunk_covariance_keeps_the_trace_and_is_positive_definite(rows):
    moments = Moments.of(anisotropic(rows))
    plain, shrunk = moments.covariance, covariance_of(moments, "ledoit-wolf")
    torch.testing.assert_close(torch.trace(shrunk), torch.trace(plain))
    assert torch.linalg.eigvalsh(shrunk)[0] > 1e-4
    assert (torch.linalg.eigvalsh(plain)[0] < 1e-12) == (rows < WIDTH)
    torch.testing.assert_close(plain @ shrunk, shrunk @ plain)  # the same eigenvectors
    intensity = ledoit_wolf_intensity(moments)
    mean = torch.trace(plain) / WIDTH
    expected = (1 - intensity) * torch.linalg.eigvalsh(plain) + intensity * mean
    torch.testing.assert_close(torch.linalg.eigvalsh(shrunk), expected)


def test_shrinkage_comes_nearer_to_the_true_covariance():
    true = Moments.of(anisotropic(200_000, seed=7)).covariance
    few = [Moments.of(anisotropic(10, seed=seed)) for seed in range(10)]
    errors = [
        sum(float((covariance_of(one, kind) - true).square().sum()) for one in few)
        for kind in ("ledoit-wolf", "none")
    ]
    assert errors[0] < 0.9 * errors[1]


def test_without_shrinkage_the_covariance_is_left_alone():
    moments = Moments.of(anisotropic(8))
    assert torch.equal(covariance_of(moments, "none"), moments.covariance)
