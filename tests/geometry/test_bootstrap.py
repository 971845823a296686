"""The bootstrap over pairs: statistics under a resample are those of the rows drawn."""

import numpy as np
import pytest
import torch

from pipeline.geometry.bootstrap import Resamples, percentile_interval
from tests.geometry.samples import gaussian


def draw(rows, count, seed=0):
    return Resamples.draw(rows, count, torch.Generator().manual_seed(seed))


def drawn_rows(counts):
    return torch.repeat_interleave(torch.arange(counts.shape[0]), counts.long())


def test_counts_are_of_rows_drawn_with_replacement():
    counts = draw(400, 300).counts
    assert (counts.sum(dim=1) == 400).all()
    # Multinomial: mean 1 and variance 1 - 1/n; a share 1/e of the rows is left out.
    assert float(counts.var(dim=0).mean()) == pytest.approx(1, rel=0.03)
    assert float((counts == 0).float().mean()) == pytest.approx(np.exp(-1), rel=0.02)
    assert torch.equal(counts, draw(400, 300).counts)
    assert not torch.equal(counts, draw(400, 300, seed=1).counts)


def test_statistics_are_those_of_the_rows_drawn():
    rows = 50
    resamples, values = draw(rows, 7), gaussian(rows, 3, 0)
    for i, counts in enumerate(resamples.counts):
        chosen = values[drawn_rows(counts)]
        torch.testing.assert_close(
            resamples.means(values)[i], chosen.mean(dim=0), atol=1e-6, rtol=0
        )
        moment = chosen.T @ chosen / rows
        torch.testing.assert_close(resamples.second_moments(values)[i], moment, atol=1e-6, rtol=0)


def test_correlations_weigh_a_pair_by_both_its_rows():
    rows = 30
    resamples, values = draw(rows, 5), gaussian(200, 2, 0)
    values[:, 1] += 5 + values[:, 0]
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(rows, (200,), generator=generator) for _ in range(2))
    found = resamples.correlations(values, first, second)
    for i, counts in enumerate(resamples.counts):
        repeated = values.repeat_interleave((counts[first] * counts[second]).long(), dim=0)
        assert float(found[i]) == pytest.approx(np.corrcoef(repeated.T.numpy())[0, 1], abs=1e-6)


def test_the_interval_of_a_gaussian_mean():
    values = gaussian(900, 1, 0)
    low, high = percentile_interval(draw(900, 2000).means(values).squeeze(1))
    expected = 2 * 1.96 * float(values.std()) / 30
    assert high - low == pytest.approx(expected, rel=0.1)
    assert low < float(values.mean()) < high


def test_the_interval_is_of_the_percentiles():
    assert percentile_interval(torch.arange(201.0)) == pytest.approx([5, 195])
