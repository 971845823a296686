import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.align.prior import (
    ScoreNetwork,
    noise_scales,
    phase_features,
    score_matching_loss,
    wrapped_gaussian_log_density,
    wrapped_gaussian_score,
)
from pipeline.align.settings import NoiseSettings
from pipeline.geometry.circular import CircularSums, PhaseStructure
from pipeline.geometry.polar import from_polar

ANGLES = st.floats(-math.pi, math.pi)
DEVIATIONS = st.floats(0.05 * math.sqrt(2), 1.5 * math.sqrt(2))
LARGEST = 1.5 * math.sqrt(2)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def gaussian(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def test_noise_scales_are_geometric():
    scales = noise_scales(NoiseSettings(smallest=0.05, largest=1.0, levels=7))
    np.testing.assert_allclose(scales, np.geomspace(0.05, 1.0, 7), rtol=1e-6)
    assert noise_scales(NoiseSettings(levels=1)).tolist() == pytest.approx([0.05])


@given(centre=ANGLES, deviation=DEVIATIONS)
def test_wrapped_density_integrates_to_one(centre, deviation):
    grid = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1].unsqueeze(1)
    spread = torch.full_like(grid, deviation)
    density = wrapped_gaussian_log_density(grid, torch.full_like(grid, centre), spread).exp()
    assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-6)


@given(phase=ANGLES, centre=ANGLES, deviation=DEVIATIONS)
def test_wrapped_score_is_the_gradient_of_the_log_density(phase, centre, deviation):
    angle = column(phase).requires_grad_()
    wrapped_gaussian_log_density(angle, column(centre), column(deviation)).backward()
    found = wrapped_gaussian_score(angle.detach(), column(centre), column(deviation))
    assert found.item() == pytest.approx(angle.grad.item(), rel=1e-8, abs=1e-8)


@given(phase=ANGLES, centre=ANGLES, deviation=DEVIATIONS, turns=st.integers(-3, 3))
def test_wrapped_gaussian_is_periodic(phase, centre, deviation, turns):
    shift = 2 * math.pi * turns
    for quantity in (wrapped_gaussian_score, wrapped_gaussian_log_density):
        plain = quantity(column(phase), column(centre), column(deviation)).item()
        for arguments in ((phase + shift, centre), (phase, centre + shift)):
            turned = quantity(*map(column, arguments), column(deviation)).item()
            # Half a turn off the centre two windings weigh the same and the score is steep.
            assert turned == pytest.approx(plain, rel=1e-4, abs=1e-7)


@given(offset=st.floats(-0.5, 0.5), centre=ANGLES)
def test_a_narrow_wrapped_gaussian_is_a_plain_one(offset, centre):
    spread = 0.08
    arguments = column(centre + offset), column(centre), column(spread)
    assert wrapped_gaussian_score(*arguments).item() == pytest.approx(-offset / spread**2, abs=1e-9)
    expected = -0.5 * (offset / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi))
    assert wrapped_gaussian_log_density(*arguments).item() == pytest.approx(expected, abs=1e-9)


@given(phase=ANGLES, centre=ANGLES)
def test_three_windings_are_enough_at_the_largest_scale(phase, centre):
    windings = phase - centre + 2 * math.pi * np.arange(-30, 31)
    weights = np.exp(-0.5 * (windings / LARGEST) ** 2)
    density = weights.sum() / (LARGEST * math.sqrt(2 * math.pi))
    score = -(weights * windings).sum() / weights.sum() / LARGEST**2
    arguments = column(phase), column(centre), column(LARGEST)
    assert wrapped_gaussian_log_density(*arguments).item() == pytest.approx(math.log(density))
    assert wrapped_gaussian_score(*arguments).item() == pytest.approx(score, abs=1e-7)


def test_wrapped_score_is_finite_far_from_a_narrow_centre():
    score = wrapped_gaussian_score(
        torch.tensor([[3.0]]), torch.tensor([[-0.1]]), torch.tensor([[0.07]])
    )
    assert torch.isfinite(score).all()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    turns=st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    harmonics=st.sampled_from([1, 3]),
)
def test_score_network_is_periodic(seed, turns, harmonics):
    torch.manual_seed(seed)
    network = ScoreNetwork(4, 16, harmonics).double()
    phase, log_radius = gaussian(5, 4, seed), gaussian(5, 4, seed + 1)
    scale = torch.full((5, 1), 0.3).double()
    turned = phase + 2 * math.pi * torch.tensor(turns).double()
    found = network(turned, scale, log_radius)
    assert found.shape == (5, 4)
    torch.testing.assert_close(found, network(phase, scale, log_radius), rtol=1e-9, atol=1e-10)


def test_harmonics_are_sines_and_cosines_of_multiples():
    phase = gaussian(5, 2, 0)
    angles = [order * phase.numpy() for order in (1, 2, 3)]
    expected = np.concatenate([turn(a) for a in angles for turn in (np.sin, np.cos)], axis=1)
    np.testing.assert_allclose(phase_features(phase, 3), expected)
    assert torch.equal(phase_features(phase, 1), torch.cat((phase.sin(), phase.cos()), dim=1))
    # Half a turn looks the same to even multiples alone: the first harmonic has to be there.
    assert not torch.allclose(phase_features(phase + math.pi, 3), phase_features(phase, 3))


def test_score_network_divides_by_the_standard_deviation():
    network = ScoreNetwork(2, 8)
    torch.nn.init.zeros_(network.exit.weight)
    torch.nn.init.ones_(network.exit.bias)
    scale = torch.tensor([[0.05], [1.0]])
    found = network(torch.zeros(2, 2), scale, torch.zeros(2, 2))
    torch.testing.assert_close(found, (-1 / (math.sqrt(2) * scale)).expand(2, 2))


def prior_structure(blocks):
    sample = from_polar(
        gaussian(99, blocks, 1).abs() + 0.1, gaussian(99, blocks, 2) + gaussian(99, 1, 3)
    )
    return PhaseStructure.of(CircularSums.of(sample), 2)


def test_score_matching_loss_against_plain_numpy():
    rows, blocks, step = 7, 4, 0.1
    structure = prior_structure(blocks)
    phase, log_radius, noise = (gaussian(rows, blocks, seed) for seed in (4, 5, 6))
    scale = torch.linspace(0.05, 1.5, rows, dtype=torch.float64).unsqueeze(1)

    def score(perturbed, scale, log_radius):
        return torch.sin(perturbed) * log_radius - scale

    total = 0.0
    for i in range(rows):
        angles, sigma = phase[i].numpy(), scale[i].item()
        drift = structure.weight.numpy() * np.sin(angles - structure.anchor.numpy())
        for k, j in structure.edges.tolist():
            pull = structure.coupling[k, j].item() * math.sin(
                angles[k] - angles[j] - structure.offset[k, j].item()
            )
            drift[k] += pull
            drift[j] -= pull
        centre = angles - step * drift
        variance = 2 * sigma**2
        perturbed = centre + math.sqrt(variance) * noise[i].numpy()
        for k in range(blocks):
            windings = perturbed[k] - centre[k] + 2 * math.pi * np.arange(-20, 21)
            weights = np.exp(-0.5 * windings**2 / variance)
            target = -(weights * windings).sum() / weights.sum() / variance
            guess = math.sin(perturbed[k]) * log_radius[i, k].item() - sigma
            total += variance * (guess - target) ** 2
    found = score_matching_loss(score, structure, step, phase, log_radius, scale, noise)
    assert found.item() == pytest.approx(total / rows, rel=1e-6)


def test_the_true_score_has_no_loss():
    structure = prior_structure(3)
    phase, noise = gaussian(50, 3, 0), gaussian(50, 3, 1)
    scale = torch.full((50, 1), 0.4).double()
    centre = phase - 0.1 * structure.drift(phase)

    def score(perturbed, scale, log_radius):
        return wrapped_gaussian_score(perturbed, centre, math.sqrt(2) * scale)

    loss = score_matching_loss(score, structure, 0.1, phase, phase, scale, noise)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_gradients_reach_phase_and_radius():
    network, structure = ScoreNetwork(3, 8), prior_structure(3).to(torch.float32)
    network.requires_grad_(False)
    phase = gaussian(6, 3, 0).float().requires_grad_()
    log_radius = gaussian(6, 3, 1).float().requires_grad_()
    scale, noise = torch.full((6, 1), 0.3), gaussian(6, 3, 2).float()
    score_matching_loss(network, structure, 0.1, phase, log_radius, scale, noise).backward()
    assert phase.grad.abs().sum() > 0
    assert log_radius.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network.parameters())
