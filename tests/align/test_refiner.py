import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.align.polar_statistics import PolarStatistics
from pipeline.align.refiner import (
    Bounds,
    Parts,
    RefinerNetwork,
    bounded_refinement,
    phase_consistency_loss,
)
from pipeline.align.settings import RefinerSettings
from pipeline.geometry.circular import CircularSums, PhaseStructure
from pipeline.geometry.frame import fixed_frame
from pipeline.geometry.polar import EPSILON, from_polar, wrap

ROWS, WIDTH, BLOCKS = 4, 7, 3


def gaussian(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def fixed(phase, log_radius, complement):
    """The same bounds in every block."""
    return Bounds(torch.full((BLOCKS,), phase), torch.full((BLOCKS,), log_radius), complement)


def frame():
    factor = gaussian(20, WIDTH, 0)
    return fixed_frame(factor.T @ factor, 2 * BLOCKS, "random", 0)


def parts(rows=ROWS, seed=0):
    radius = gaussian(rows, BLOCKS, seed).abs() + 0.01
    return Parts(
        radius, wrap(gaussian(rows, BLOCKS, seed + 1) * 3), gaussian(rows, WIDTH, seed + 2)
    )


def structure(blocks=BLOCKS):
    sample = from_polar(gaussian(99, blocks, 1).abs(), gaussian(99, blocks, 2))
    return PhaseStructure.of(CircularSums.of(sample), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    output=hnp.arrays(
        np.float32,
        (ROWS, 2 * BLOCKS + WIDTH),
        elements=st.floats(-(2.0**115), 2.0**115, width=32) | st.floats(-3, 3, width=32),
    ),
    phase=st.floats(0, 1),
    log_radius=st.floats(0, 1),
    complement=st.floats(0, 1),
)
def test_bounds_hold_for_any_output(dtype, output, phase, log_radius, complement):
    initial = Parts(*(part.to(dtype) for part in parts()))
    phase, log_radius = (
        torch.tensor([1.0, 0.3, 0.0], dtype=dtype) * b for b in (phase, log_radius)
    )
    bounds = Bounds(phase, log_radius, complement)
    refined = bounded_refinement(
        initial, torch.from_numpy(output).to(dtype), frame().to(dtype), bounds
    )
    slack = 2e-6 if dtype == torch.float32 else 1e-12
    assert (wrap(refined.phase - initial.phase).abs() <= phase + slack).all()
    assert (torch.log(refined.radius / initial.radius).abs() <= log_radius + slack).all()
    assert ((refined.complement - initial.complement).abs() <= complement + slack).all()
    assert (refined.phase >= -math.pi - slack).all()
    assert (refined.phase < math.pi).all()


def test_bounded_refinement_against_plain_numpy():
    initial, output = parts(), gaussian(ROWS, 2 * BLOCKS + WIDTH, 9)
    phase, radius = (torch.tensor(b).double() for b in ([0.3, 0.1, 0.0], [0.2, 0.0, 0.4]))
    refined = bounded_refinement(initial, output, frame(), Bounds(phase, radius, 0.02))
    raw, basis = output.numpy(), frame().basis.numpy()
    turned = initial.phase.numpy() + phase.numpy() * np.tanh(raw[:, :BLOCKS])
    np.testing.assert_allclose(np.exp(1j * refined.phase), np.exp(1j * turned), atol=1e-12)
    factor = np.exp(radius.numpy() * np.tanh(raw[:, BLOCKS : 2 * BLOCKS]))
    np.testing.assert_allclose(refined.radius, initial.radius.numpy() * factor)
    change = raw[:, 2 * BLOCKS :]
    change = change - change @ basis @ basis.T
    expected = initial.complement.numpy() + 0.02 * np.tanh(change)
    np.testing.assert_allclose(refined.complement, expected)


def test_refiner_starts_at_the_initialization_exactly():
    network = RefinerNetwork(BLOCKS, WIDTH, 16)
    radius, phase, complement = (part.float() for part in parts(rows=300))
    initial = Parts(radius, wrap(phase), complement)
    output = network(initial)
    assert torch.equal(output, torch.zeros(300, 2 * BLOCKS + WIDTH))
    refined = bounded_refinement(initial, output, frame().to(torch.float32), fixed(0.3, 0.2, 0.02))
    for before, after in zip(initial, refined, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("harmonics", [1, 3])
def test_refiner_sees_phases_as_directions(harmonics):
    network = RefinerNetwork(BLOCKS, WIDTH, 16, harmonics).double()
    torch.nn.init.normal_(network.exit.weight)
    initial = parts()
    turned = initial._replace(phase=initial.phase + 2 * math.pi)
    torch.testing.assert_close(network(initial), network(turned))
    for field in Parts._fields:
        changed = initial._replace(**{field: getattr(initial, field) + 0.1})
        assert not torch.allclose(network(initial), network(changed))


def spread_of(deviation, spread, rows=20_000):
    """Statistics of wrapped Gaussian phases and log-normal radii of known spread."""
    phase = wrap(gaussian(rows, BLOCKS, 0) * deviation + torch.tensor([0.0, 1.0, 3.0]))
    return PolarStatistics.of(from_polar(torch.exp(gaussian(rows, BLOCKS, 1) * spread - 2), phase))


def test_fixed_bounds_are_the_settings():
    settings = RefinerSettings(
        bounds="fixed", phase_bound=0.3, log_radius_bound=0.2, complement_bound=0.1
    )
    bounds = Bounds.of(settings, spread_of(torch.ones(BLOCKS), torch.ones(BLOCKS), 50))
    assert (bounds.phase.tolist(), bounds.log_radius.tolist()) == ([0.3] * 3, [0.2] * 3)
    assert bounds.complement == 0.1
    assert bounds.to("cpu").phase.dtype == torch.float32


def test_adaptive_bounds_are_in_units_of_the_targets_spread():
    settings = RefinerSettings(bounds="adaptive", phase_bound=0.5, log_radius_bound=0.25)
    deviation, spread = (
        torch.tensor([0.1, 0.8, 1.6]).double(),
        torch.tensor([0.02, 0.3, 1]).double(),
    )
    bounds = Bounds.of(settings, spread_of(deviation, spread))
    # |E e^{i theta}| = exp(-sigma^2 / 2) for a wrapped Gaussian: its circular deviation is sigma.
    torch.testing.assert_close(bounds.phase, 0.5 * deviation, rtol=0.03, atol=0)
    torch.testing.assert_close(bounds.log_radius, 0.25 * spread, rtol=0.03, atol=0)
    assert bounds.complement == settings.complement_bound


def test_adaptive_bounds_of_phases_without_direction_or_without_spread():
    settings = RefinerSettings(bounds="adaptive", phase_bound=2.0)
    free = torch.linspace(-math.pi, math.pi, 9).double()[:-1].unsqueeze(1).repeat(1, BLOCKS)
    radius = torch.ones_like(free)
    reached = Bounds.of(settings, PolarStatistics.of(from_polar(radius, free)))
    assert reached.phase.tolist() == pytest.approx([math.pi] * BLOCKS)
    assert reached.log_radius.tolist() == pytest.approx([0] * BLOCKS, abs=1e-12)
    stuck = Bounds.of(settings, PolarStatistics.of(from_polar(radius, torch.ones_like(free))))
    assert stuck.phase.abs().max() < 1e-6


def plain_phase_loss(initial, refined, structure):
    total = 0.0
    edges = structure.edges.tolist()
    for i in range(initial.phase.shape[0]):
        radius, before, after = (
            values[i].tolist() for values in (initial.radius, initial.phase, refined.phase)
        )
        scale = sum(radius[k] * radius[j] for k, j in edges) + EPSILON
        for k, j in edges:
            twist = (after[k] - after[j]) - (before[k] - before[j])
            total += radius[k] * radius[j] / scale * (1 - math.cos(twist)) / len(edges)
    return total / initial.phase.shape[0]


def test_phase_consistency_loss_against_a_plain_loop():
    initial, refined = parts(), parts(seed=7)
    found = phase_consistency_loss(initial, refined, structure())
    assert found.item() == pytest.approx(plain_phase_loss(initial, refined, structure()), rel=1e-9)


@given(angle=st.floats(-10, 10))
def test_a_common_rotation_costs_nothing(angle):
    initial = parts()
    turned = initial._replace(phase=wrap(initial.phase + angle))
    assert phase_consistency_loss(initial, turned, structure()).item() == pytest.approx(
        0, abs=1e-12
    )


def test_a_single_block_has_no_phase_consistency_to_lose():
    lone = Parts(torch.ones(4, 1), torch.zeros(4, 1), torch.zeros(4, WIDTH))
    turned = lone._replace(phase=torch.ones(4, 1))
    assert phase_consistency_loss(lone, turned, structure(blocks=1)).item() == 0
