import torch

from pipeline.align.polar_statistics import PolarStatistics
from pipeline.geometry.polar import from_polar


def sample(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(rows, 2, generator=generator) * 6 - 3
    return from_polar(torch.rand(rows, 2, generator=generator) + 0.1, phase)


def assert_same(first, second):
    assert first.circular.count == second.circular.count == first.radial.count
    for name, tensor in first.circular.tensors().items():
        torch.testing.assert_close(tensor, second.circular.tensors()[name])
    for name, tensor in first.radial.tensors().items():
        assert torch.equal(tensor, second.radial.tensors()[name])


def test_merge_is_associative_and_order_free():
    samples = [sample(rows, rows) for rows in (700, 90, 1500)]
    whole = PolarStatistics.of(torch.cat(samples))
    first, second, third = map(PolarStatistics.of, samples)
    assert_same(first.merge(second).merge(third), whole)
    assert_same(first.merge(second.merge(third)), whole)
    assert_same(third.merge(first).merge(second), whole)


def test_zero_is_neutral():
    zero, some = PolarStatistics.zero(2), PolarStatistics.of(sample(50, 0))
    assert_same(zero.merge(some), some)
    assert_same(some.merge(zero), some)


def test_tensors_round_trip():
    some = PolarStatistics.of(sample(50, 0))
    again = PolarStatistics.from_tensors(some.tensors())
    assert_same(again, some)
    for name, tensor in some.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
