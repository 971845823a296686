import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.geometry.polar import from_polar, to_polar, wrap

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
@given(angle=st.floats(-100, 100))
@example(angle=math.pi)
@example(angle=-math.pi)
@example(angle=math.nextafter(-math.pi, -4))
@example(angle=math.nextafter(math.pi, 0))
def test_wrap_gives_the_same_direction_in_the_half_open_range(dtype, angle):
    angle = torch.tensor(angle, dtype=dtype)
    pi = torch.tensor(math.pi, dtype=dtype)
    wrapped = wrap(angle)
    assert wrapped.dtype == dtype
    assert -pi <= wrapped < pi
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    assert torch.cos(wrapped - angle) > 1 - tolerance
    assert torch.equal(wrap(wrapped), wrapped)


def test_wrap_passes_gradients():
    angle = torch.tensor([0.5, 4.0, -9.0, -math.pi], requires_grad=True)
    wrap(angle).sum().backward()
    assert torch.equal(angle.grad, torch.ones(4))


@DTYPES
@given(values=hnp.arrays(np.float64, (3, 6), elements=st.floats(-10, 10)))
def test_round_trip(dtype, values):
    coordinates = torch.from_numpy(values).to(dtype)
    polar = to_polar(coordinates)
    assert polar.radius.shape == polar.phase.shape == (3, 3)
    assert (polar.radius > 0).all()
    assert (polar.phase >= -torch.tensor(math.pi, dtype=dtype)).all()
    assert (polar.phase < torch.tensor(math.pi, dtype=dtype)).all()
    # A radius is at least sqrt(EPSILON) = 1e-6.
    torch.testing.assert_close(from_polar(*polar), coordinates, atol=1.01e-5, rtol=1e-5)


def test_blocks_are_neighbouring_coordinates():
    polar = to_polar(torch.tensor([[3.0, 4.0, 0.0, -2.0, -1.0, 0.0]]).double())
    np.testing.assert_allclose(polar.radius, [[5, 2, 1]])
    np.testing.assert_allclose(polar.phase, [[math.atan2(4, 3), -math.pi / 2, -math.pi]])


def test_zero_has_a_logarithm():
    polar = to_polar(torch.zeros(1, 2))
    assert torch.isfinite(torch.log(polar.radius)).all()
    assert polar.phase.item() == 0
