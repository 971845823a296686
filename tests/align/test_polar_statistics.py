import torch

from pipeline.align.polar_statistics import PolarStatistics
from pipeline.geometry.polar import Polar

LEVELS = [0.0, 0.1, 0.5, 0.9, 1.0]


def sample(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(rows, 2, generator=generator) * 6 - 3
    return Polar(torch.rand(rows, 2, generator=generator) + 0.1, phase)


def together(*samples):
    return Polar(*(torch.cat(parts) for parts in zip(*samples, strict=True)))


def assert_same(first, second, rank_error=0.0):
    assert first.circular.count == second.circular.count == first.radial.count
    for name, tensor in first.circular.tensors().items():
        torch.testing.assert_close(tensor, second.circular.tensors()[name])
    # The radii are uniform on an interval of length 1, so that a rank error is a radius error.
    torch.testing.assert_close(
        first.radial.quantiles(LEVELS), second.radial.quantiles(LEVELS), rtol=0, atol=rank_error
    )


def test_merge_is_associative_and_order_free():
    samples = [sample(rows, rows) for rows in (700, 90, 1500)]
    whole = PolarStatistics.of(together(*samples))
    first, second, third = map(PolarStatistics.of, samples)
    assert_same(first.merge(second).merge(third), whole, 2e-3)
    assert_same(first.merge(second.merge(third)), whole, 2e-3)
    assert_same(third.merge(first).merge(second), whole, 2e-3)


def test_zero_is_neutral():
    zero, some = PolarStatistics.zero(2), PolarStatistics.of(sample(50, 0))
    assert_same(zero.merge(some), some)
    assert_same(some.merge(zero), some)


def test_tensors_round_trip():
    some = PolarStatistics.of(sample(50, 0))
    again = PolarStatistics.from_tensors(some.tensors())
    assert_same(again, some)
    assert again.radial == some.radial
    for name, tensor in some.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
