import pytest
import torch

from pipeline.geometry.gaussian_transport import (
    block_bures_map,
    bures_map,
    displaced,
    whitening_colouring_map,
)

WIDTH = 8
BOTH = pytest.mark.parametrize("between", [bures_map, whitening_colouring_map])


def covariance(seed: int, rank: int = WIDTH) -> torch.Tensor:
    """Return an anisotropic covariance (d, d) of a given rank, eigenvalues from 1 to 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)
    vectors = torch.linalg.qr(gaussian).Q[:, :rank]
    return (vectors * torch.logspace(0, -3, rank, dtype=torch.float64)) @ vectors.T


def bures_distance(source: torch.Tensor, target: torch.Tensor) -> float:
    """Return the squared Bures distance from the singular values of the product of roots."""
    factors = [torch.linalg.cholesky(one) for one in (source, target)]
    nuclear = torch.linalg.svdvals(factors[1].T @ factors[0]).sum()
    return float(torch.trace(source) + torch.trace(target) - 2 * nuclear)


def mean_square_move(transport: torch.Tensor, source: torch.Tensor) -> float:
    """Return E |A y - y|^2 for centred y of covariance S: tr((A - I) S (A - I)^T)."""
    change = transport - torch.eye(WIDTH, dtype=torch.float64)
    return float(torch.trace(change @ source @ change.T))


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_the_source_covariance_becomes_the_targets(between, seed):
    source, target = covariance(seed), covariance(seed + 10)
    transport = between(source, target)
    torch.testing.assert_close(transport @ source @ transport.T, target, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_bures_map_is_the_optimal_one(seed):
    source, target = covariance(seed), covariance(seed + 10)
    bures, whitening = bures_map(source, target), whitening_colouring_map(source, target)
    assert torch.equal(bures, bures.T)
    assert torch.linalg.eigvalsh(bures)[0] > 0
    least = mean_square_move(bures, source)
    assert least == pytest.approx(bures_distance(source, target), rel=1e-6)
    assert least < mean_square_move(whitening, source)


@BOTH
def test_commuting_covariances_scale_each_axis(between):
    source = torch.diag(torch.linspace(1, 4, WIDTH, dtype=torch.float64))
    target = torch.diag(torch.linspace(9, 2, WIDTH, dtype=torch.float64))
    expected = torch.diag((target.diagonal() / source.diagonal()).sqrt())
    torch.testing.assert_close(between(source, target), expected)


@BOTH
def test_where_the_source_has_no_variance_the_map_is_zero(between):
    source, target = covariance(0, rank=5), covariance(1)
    transport = between(source, target)
    null = torch.linalg.eigh(source).eigenvectors[:, :3]
    assert torch.isfinite(transport).all()
    torch.testing.assert_close(transport @ null, torch.zeros_like(null), atol=1e-6, rtol=0)
    assert not between(torch.zeros_like(source), target).any()


def test_a_singular_source_reaches_the_target_within_its_range():
    source, target = covariance(0, rank=5), covariance(1)
    transport = bures_map(source, target)
    basis = torch.linalg.eigh(source).eigenvectors[:, 3:]
    reached, wanted = (basis.T @ one @ basis for one in (transport @ source @ transport, target))
    torch.testing.assert_close(reached, wanted, atol=1e-10, rtol=1e-6)


def test_blocks_match_and_nothing_else_is_touched():
    source, target = covariance(0), covariance(1)
    transport = block_bures_map(source, target)
    blocks = torch.block_diag(*[torch.ones(2, 2)] * (WIDTH // 2)).bool()
    assert not transport[~blocks].any()
    reached = transport @ source @ transport.T
    torch.testing.assert_close(reached[blocks], target[blocks], atol=1e-10, rtol=1e-8)
    assert not torch.allclose(reached, target, atol=1e-3)
    first = bures_map(source[2:4, 2:4], target[2:4, 2:4])
    torch.testing.assert_close(transport[2:4, 2:4], first)


def test_displacement_goes_from_nowhere_to_the_whole_map():
    source, target = covariance(0), covariance(1)
    transport = bures_map(source, target)
    identity = torch.eye(WIDTH, dtype=torch.float64)
    assert torch.equal(displaced(transport, 0.0), identity)
    torch.testing.assert_close(displaced(transport, 1.0), transport)
    # On the geodesic the distance to the source grows in proportion to t.
    halfway = displaced(transport, 0.5)
    reached = halfway @ source @ halfway.T
    whole = bures_distance(source, target)
    assert bures_distance(source, reached) == pytest.approx(whole / 4, rel=1e-6)
    assert bures_distance(reached, target) == pytest.approx(whole / 4, rel=1e-6)
