"""The fused Gromov-Wasserstein map: its limits, optimality and symmetries."""

import pytest
import torch

from pipeline.geometry.gaussian_transport import bures_map, displaced, inverse_root, root
from pipeline.geometry.gromov_transport import gromov_map
from tests.geometry.samples import gaussian, rotation

WIDTH = 8
IDENTITY = torch.eye(WIDTH, dtype=torch.float64)
WEIGHTS = pytest.mark.parametrize("isometry", [0.0, 1.0, 10.0])
DISPLACEMENTS = pytest.mark.parametrize("displacement", [0.1, 0.4, 0.8])


def covariance(seed: int, rank: int = WIDTH) -> torch.Tensor:
    """Return a covariance (d, d) of a given rank, eigenvalues from 0.3 to 0.3e-2."""
    vectors = rotation(WIDTH, seed)[:, :rank]
    return (vectors * (0.3 * torch.logspace(0, -2, rank, dtype=torch.float64))) @ vectors.T


SOURCE, TARGET = covariance(0), covariance(1)


def mismatch(transport, source=SOURCE, target=TARGET):
    """Return the squared Bures distance of the moved source and the target."""
    moved = transport @ source @ transport.T
    cross = root(root(target) @ moved @ root(target))
    return float(torch.trace(moved) + torch.trace(target) - 2 * torch.trace(cross))


def distortion(transport, source=SOURCE):
    """Return ||S^{1/2} (A^T A - I) S^{1/2}||_F^2 / ||S||_F^2."""
    half = root(source)
    change = half @ (transport.T @ transport - IDENTITY) @ half
    return float(change.square().sum() / source.square().sum())


def objective(transport, displacement, isometry, source=SOURCE, target=TARGET):
    change = transport - IDENTITY
    moving = float(torch.trace(change @ source @ change.T))
    cost = (1 - displacement) / displacement * moving
    charge = isometry * distortion(transport, source) * float(torch.trace(source))
    return mismatch(transport, source, target) + cost + charge


@pytest.mark.parametrize("displacement", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_without_isometry_it_is_the_displaced_bures_map(displacement, seed):
    source, target = covariance(seed), covariance(seed + 10)
    expected = displaced(bures_map(source, target), displacement)
    found = gromov_map(source, target, displacement, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_the_bures_map_is_reached_continuously():
    expected = displaced(bures_map(SOURCE, TARGET), 0.4)
    errors = [(gromov_map(SOURCE, TARGET, 0.4, g) - expected).norm() for g in (0.1, 1e-3, 1e-6)]
    assert errors[0] > 10 * errors[1] > 10 * errors[2]
    assert errors[2] < 1e-4


@WEIGHTS
def test_without_displacement_nothing_moves(isometry):
    assert torch.equal(gromov_map(SOURCE, TARGET, 0.0, isometry), IDENTITY)


@WEIGHTS
@DISPLACEMENTS
def test_no_other_map_has_a_smaller_objective(isometry, displacement):
    transport = gromov_map(SOURCE, TARGET, displacement, isometry)
    reached = objective(transport, displacement, isometry)
    assert reached < objective(IDENTITY, displacement, isometry)
    bures = displaced(bures_map(SOURCE, TARGET), displacement)
    assert reached <= objective(bures, displacement, isometry) + 1e-9
    for seed in range(30):
        step = 10.0 ** -(1 + seed % 4)
        other = transport + step * gaussian(WIDTH, WIDTH, seed)
        assert reached <= objective(other, displacement, isometry) + 1e-8


def test_isometry_is_bought_with_mismatch():
    maps = [gromov_map(SOURCE, TARGET, 0.4, weight) for weight in (0.0, 1.0, 10.0, 100.0)]
    distortions, mismatches = [[of(one) for one in maps] for of in (distortion, mismatch)]
    assert distortions == sorted(distortions, reverse=True)
    assert mismatches == sorted(mismatches)


def test_a_large_weight_turns_the_source_towards_the_target():
    transport = gromov_map(SOURCE, TARGET, 0.4, 1000.0)
    assert distortion(transport) < 1e-4
    assert mismatch(transport) < 0.9 * mismatch(IDENTITY)
    # Turned, not stretched: singular values stay near 1 where the Bures map's are far off.
    spread = torch.linalg.svdvals(transport @ root(SOURCE)) / torch.linalg.svdvals(root(SOURCE))
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=0.1, rtol=0)


@WEIGHTS
@DISPLACEMENTS
def test_equal_covariances_are_left_alone(isometry, displacement):
    found = gromov_map(SOURCE, SOURCE, displacement, isometry)
    torch.testing.assert_close(found, IDENTITY, atol=1e-6, rtol=0)


@WEIGHTS
@pytest.mark.parametrize("seed", [5, 6])
def test_turned_covariances_give_the_turned_map(isometry, seed):
    turn = rotation(WIDTH, seed)
    found = gromov_map(turn @ SOURCE @ turn.T, turn @ TARGET @ turn.T, 0.4, isometry)
    expected = turn @ gromov_map(SOURCE, TARGET, 0.4, isometry) @ turn.T
    # On rows of the source: where it has little variance, little depends on the map.
    on_rows = (found - expected) @ root(turn @ SOURCE @ turn.T)
    torch.testing.assert_close(on_rows, torch.zeros_like(on_rows), atol=1e-5, rtol=0)


def test_scaling_both_covariances_changes_nothing():
    found = gromov_map(9 * SOURCE, 9 * TARGET, 0.4, 10.0)
    expected = gromov_map(SOURCE, TARGET, 0.4, 10.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("angle", [0.05, 0.2, 0.5])
def test_a_small_turn_is_found(angle):
    vectors = torch.linalg.eigh(SOURCE).eigenvectors
    plane = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    plane[-1, -2], plane[-2, -1] = angle, -angle
    turn = vectors @ torch.matrix_exp(plane) @ vectors.T
    target = turn @ SOURCE @ turn.T
    found = gromov_map(SOURCE, target, 0.9999, 1000.0)
    torch.testing.assert_close(found, turn, atol=1e-3, rtol=0)
    # The Bures map is symmetric: it can only stretch, which no turn is.
    assert (displaced(bures_map(SOURCE, target), 0.9999) - turn).abs().max() > 0.5 * angle


def test_it_is_deterministic():
    first, again = (gromov_map(SOURCE, TARGET, 0.4, 10.0) for _ in range(2))
    assert torch.equal(first, again)


@WEIGHTS
@DISPLACEMENTS
def test_a_singular_source_is_moved_as_well_as_any_linear_map_can(isometry, displacement):
    source = covariance(0, rank=5)
    transport = gromov_map(source, TARGET, displacement, isometry)
    assert torch.isfinite(transport).all()
    within = root(source) @ inverse_root(source)
    torch.testing.assert_close(transport @ within, transport, atol=1e-8, rtol=0)
    reached = objective(transport, displacement, isometry, source)
    for seed in range(40):
        other = transport + 10.0 ** -(1 + seed % 4) * gaussian(WIDTH, WIDTH, seed)
        assert reached <= objective(other, displacement, isometry, source) + 1e-7


@pytest.mark.parametrize("target", [TARGET, covariance(1, rank=3), 0 * TARGET])
def test_sources_and_targets_without_variance_are_no_trouble(target):
    assert torch.isfinite(gromov_map(SOURCE, target, 0.4, 10.0)).all()
    assert torch.equal(gromov_map(0 * SOURCE, target, 0.4, 10.0), IDENTITY)
