import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry.radial import TRANSPORT_LEVELS, RadialSketch, RadialTransport
from tests.geometry.samples import gaussian

LEVELS = np.linspace(0, 1, 101).tolist()
RANK_ERROR = 1e-3


def radii(rows, blocks, seed, scale=1.0):
    return gaussian(rows, blocks, seed).abs() * scale + 0.01


def assert_quantiles(sketch, sample):
    """The share of the sample below each quantile is the level, to the sketch's rank error."""
    assert sketch.count == sample.shape[0]
    found = sketch.quantiles(LEVELS).numpy()
    slack = RANK_ERROR + 1 / sample.shape[0]
    for block, column in enumerate(sample.numpy().T):
        ordered = np.sort(column)
        low = np.searchsorted(ordered, found[block], side="left") / len(ordered)
        high = np.searchsorted(ordered, found[block], side="right") / len(ordered)
        assert (low <= np.array(LEVELS) + slack).all()
        assert (high >= np.array(LEVELS) - slack).all()


def distance(first, second):
    """The Kolmogorov-Smirnov distance of two samples."""
    both = np.concatenate((first, second))
    shares = [
        np.searchsorted(np.sort(one), both, side="right") / len(one) for one in (first, second)
    ]
    return np.abs(shares[0] - shares[1]).max()


def assert_equal(first, second):
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_merge_is_associative_and_order_free_to_the_bit():
    whole = radii(30_000, 2, 0) * torch.tensor([1.0, 50.0])
    whole = whole.sort(dim=0).values  # each part sees another range
    first, second, third = (RadialSketch.of(part) for part in whole.split([5_000, 5_000, 20_000]))
    sketch = RadialSketch.of(whole)
    assert_quantiles(sketch, whole)
    assert_equal(first.merge(second).merge(third), sketch)
    assert_equal(first.merge(second.merge(third)), sketch)
    assert_equal(third.merge(first).merge(second), sketch)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_quantiles_are_those_of_the_sample(scale):
    sample = radii(50_000, 2, 4, scale)
    levels = np.linspace(0.01, 0.99, 99)
    found = RadialSketch.of(sample).quantiles(levels.tolist())
    expected = np.quantile(sample.numpy(), levels, axis=0).T
    np.testing.assert_allclose(found, expected, rtol=2**-8)  # a bin
    ends = RadialSketch.of(sample).quantiles([0.0, 1.0])
    expected = torch.stack((sample.amin(0), sample.amax(0)), dim=1)
    assert torch.equal(ends, expected.float().double())


def test_radii_out_of_range_are_kept_as_extremes():
    sketch = RadialSketch.of(torch.tensor([[1e-12], [1e9]], dtype=torch.float64))
    assert sketch.count == 2
    assert sketch.quantiles([0.0, 1.0]).tolist() == [pytest.approx([1e-12, 1e9])]


def test_zero_is_neutral_and_empty():
    zero, some = RadialSketch.zero(2), RadialSketch.of(radii(50, 2, 0))
    expected = some.quantiles(LEVELS)
    assert torch.equal(zero.merge(some).quantiles(LEVELS), expected)
    assert torch.equal(some.merge(zero).quantiles(LEVELS), expected)
    assert zero.count == RadialSketch.of(torch.empty(0, 2)).count == 0
    with pytest.raises(ValueError, match="no embeddings"):
        zero.quantiles(LEVELS)


def test_same_rows_give_the_same_bytes_and_round_trip():
    sample = radii(20_000, 3, 0)
    sketch = RadialSketch.of(sample)
    assert_equal(RadialSketch.of(sample.clone()), sketch)
    assert_equal(RadialSketch.from_tensors(sketch.tensors()), sketch)


def test_merging_changes_neither_side():
    first, second = RadialSketch.of(radii(99, 1, 0)), RadialSketch.of(radii(99, 1, 1))
    first.merge(second)
    assert_equal(first, RadialSketch.of(radii(99, 1, 0)))
    assert_equal(second, RadialSketch.of(radii(99, 1, 1)))


def test_transport_makes_the_distributions_equal():
    text = radii(8_000, 2, 0)
    image = torch.stack((radii(6_000, 1, 1)[:, 0] ** 2 * 3, 0.2 + radii(6_000, 1, 2)[:, 0] / 9), 1)
    transport = RadialTransport.between(RadialSketch.of(text), RadialSketch.of(image))
    fresh = radii(8_000, 2, 7)
    for block in range(2):
        moved = transport(text)[:, block].numpy()
        assert distance(moved, image[:, block].numpy()) < 2 / TRANSPORT_LEVELS
        assert distance(transport(fresh)[:, block].numpy(), image[:, block].numpy()) < 0.03
        levels = [0.05, 0.25, 0.5, 0.75, 0.95]
        expected = np.quantile(image[:, block], levels)
        np.testing.assert_allclose(np.quantile(moved, levels), expected, rtol=1e-2)


def fitted(dtype=torch.float64):
    text, image = RadialSketch.of(radii(900, 2, 0)), RadialSketch.of(radii(700, 2, 1, scale=3))
    return RadialTransport.between(text, image).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transport_is_monotone_and_positive_everywhere(dtype):
    transport = fitted(dtype)
    points = torch.cat((torch.logspace(-6, 3, 4000).double(), torch.linspace(0.001, 6, 4000)))
    points = points.sort().values.to(dtype).unsqueeze(1).expand(-1, 2)
    moved = transport(points)
    assert moved.dtype == dtype
    assert (moved > 0).all()
    assert (moved.diff(dim=0) >= -1e-6 * moved[1:]).all()


def test_transport_is_continuous_at_the_ends_of_the_range():
    transport = fitted()
    for index in (0, -1):
        end, target = transport.text_quantiles[:, index], transport.image_quantiles[:, index]
        for factor in (1 - 1e-9, 1, 1 + 1e-9):
            moved = transport((end * factor).unsqueeze(0))[0]
            torch.testing.assert_close(moved, target, rtol=1e-5, atol=0)
    beyond = transport.text_quantiles[:, -1:].T * 2
    torch.testing.assert_close(transport(beyond), 2 * transport.image_quantiles[:, -1:].T)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 300), far=st.floats(1e-4, 1e4))
def test_equal_sketches_give_the_identity(seed, rows, far):
    sample = radii(rows, 2, seed)
    sketch = RadialSketch.of(sample)
    transport = RadialTransport.between(sketch, sketch)
    points = torch.cat((sample, radii(20, 2, seed + 1) * far))
    torch.testing.assert_close(transport(points), points)


def test_constant_radii_are_carried_over():
    text, image = torch.full((10, 1), 2.0), torch.full((10, 1), 3.0)
    transport = RadialTransport.between(RadialSketch.of(text), RadialSketch.of(image))
    moved = transport(torch.tensor([[1.0], [2.0], [4.0]]).double())
    assert moved[:, 0].tolist() == [1.5, 3.0, 6.0]


def test_atoms_keep_the_transport_monotone():
    text = torch.cat((torch.full((500, 1), 1.0), radii(500, 1, 0)))
    image = torch.cat((torch.full((300, 1), 0.5), radii(700, 1, 1)))
    transport = RadialTransport.between(RadialSketch.of(text), RadialSketch.of(image))
    moved = transport(torch.linspace(0.001, 5, 3000).double().unsqueeze(1))
    assert torch.isfinite(moved).all()
    assert (moved.diff(dim=0) >= -1e-12).all()


def test_no_rows_are_moved_to_no_rows():
    assert fitted()(torch.empty(0, 2).double()).shape == (0, 2)
