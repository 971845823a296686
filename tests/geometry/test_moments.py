import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import moments
from pipeline.geometry.moments import MeanSum, Moments
from pipeline.geometry.symmetric_product import SymmetricProduct
from tests.geometry.samples import gaussian

STATES = pytest.mark.parametrize("state", [MeanSum, Moments])
ROWS = st.integers(0, 9)
SEEDS = st.integers(0, 2**32)


def assert_same(first, second):
    for name, tensor in first.tensors().items():
        torch.testing.assert_close(tensor, second.tensors()[name], rtol=1e-12, atol=1e-12)


@STATES
@given(sizes=st.tuples(ROWS, ROWS, ROWS), seed=SEEDS)
def test_merge_is_associative_and_order_free(state, sizes, seed):
    parts = [gaussian(rows, 4, seed + index) for index, rows in enumerate(sizes)]
    first, second, third = (state.of(part) for part in parts)
    whole = state.of(torch.cat(parts))
    assert_same(first.merge(second).merge(third), whole)
    assert_same(first.merge(second.merge(third)), whole)
    assert_same(third.merge(first).merge(second), whole)


@STATES
def test_zero_is_neutral_and_empty(state):
    zero, some = state.zero(4), state.of(gaussian(5, 4, 0))
    assert_same(zero.merge(some), some)
    assert_same(some.merge(zero), some)
    assert_same(state.of(torch.empty(0, 4)), zero)
    assert zero.merge(zero).count == 0


@STATES
def test_tensors_round_trip(state):
    some = state.of(gaussian(5, 4, 0))
    again = state.from_tensors(some.tensors())
    assert again.count == some.count == 5
    for name, tensor in some.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


@given(rows=st.integers(1, 40), seed=SEEDS)
def test_moments_are_numpys(rows, seed):
    sample = gaussian(rows, 3, seed)
    state = Moments.of(sample)
    np.testing.assert_allclose(state.mean, sample.numpy().mean(axis=0), atol=1e-12)
    expected = np.cov(sample.numpy(), rowvar=False, ddof=0)
    np.testing.assert_allclose(state.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(MeanSum.of(sample).mean, state.mean, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [1, 7, 300])
def test_one_triangle_gives_the_whole_product(threads, width):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        product = SymmetricProduct(width, torch.device("cpu"))
        rows = gaussian(50, width, 0)
        for part in rows.split(20):
            product.add(part)
        torch.testing.assert_close(product.result, rows.T @ rows, rtol=1e-12, atol=1e-12)
        assert torch.equal(product.result, product.result.T)
    finally:
        torch.set_num_threads(before)


def test_badly_centred_float32_keeps_its_covariance(monkeypatch):
    monkeypatch.setattr(moments, "_CHUNK_ROWS", 64)
    sample = gaussian(1000, 5, 0, torch.float32) * 0.1 + 3000
    exact = sample.to(torch.float64).numpy()
    np.testing.assert_allclose(
        Moments.of(sample).covariance, np.cov(exact, rowvar=False, ddof=0), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(MeanSum.of(sample).mean, exact.mean(axis=0), rtol=1e-14)


def test_half_precision_is_accumulated_in_float64():
    sample = torch.full((70_000, 1), 0.5, dtype=torch.float16)
    assert MeanSum.of(sample).total.item() == 35_000
    assert Moments.of(sample).mean.dtype == torch.float64


def test_nothing_has_no_mean_and_no_covariance():
    with pytest.raises(ValueError, match="mean of no embeddings"):
        _ = MeanSum.zero(3).mean
    with pytest.raises(ValueError, match="covariance of no embeddings"):
        _ = Moments.zero(3).covariance
