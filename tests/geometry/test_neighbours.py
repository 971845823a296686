import numpy as np
import pytest
import torch

from pipeline.geometry import neighbours
from pipeline.geometry.neighbours import NeighbourIndex, match_ranks
from tests.geometry.samples import gaussian, unit_rows

BLOCKED = pytest.mark.parametrize("values", [32_000_000, 100, 1])


@BLOCKED
def test_neighbours_against_brute_force(values, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", values)
    points = unit_rows(40, 5, 0)
    found = NeighbourIndex(points).among_themselves(6).position.numpy()
    for row, point in enumerate(points.numpy()):
        distances = np.linalg.norm(points.numpy() - point, axis=1)
        distances[row] = np.inf
        assert found[row].tolist() == np.argsort(distances)[:6].tolist()


def test_a_row_is_not_its_own_neighbour_even_among_copies():
    points = unit_rows(5, 4, 0).repeat(3, 1)
    found = NeighbourIndex(points).among_themselves(2).position
    assert (found != torch.arange(15).unsqueeze(1)).all()
    assert (found % 5 == (torch.arange(15) % 5).unsqueeze(1)).all()


@BLOCKED
def test_searches_among_other_rows_against_brute_force(values, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", values)
    queries, targets = unit_rows(30, 5, 0), unit_rows(40, 5, 1)
    found = NeighbourIndex(targets).search(queries, 6)
    similarity = queries.numpy() @ targets.numpy().T
    assert found.position.tolist() == np.argsort(-similarity)[:, :6].tolist()
    np.testing.assert_allclose(found.similarity, -np.sort(-similarity)[:, :6])
    assert found.recall == 1


def test_too_few_rows():
    index = NeighbourIndex(unit_rows(4, 3, 0))
    assert index.among_themselves(3).position.shape == (4, 3)
    assert index.search(unit_rows(7, 3, 1), 4).position.shape == (7, 4)
    with pytest.raises(ValueError, match="4 nearest neighbours need at least 5 rows, not 4"):
        index.among_themselves(4)


def clustered(rows, seed):
    """Return rows around 40 common centres on the sphere."""
    centres = unit_rows(40, 16, 100)
    own = torch.randint(40, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(centres[own] + 0.15 * gaussian(rows, 16, seed), dim=1)


def share_found(truth, found):
    both = truth.position.unsqueeze(2) == found.position.unsqueeze(1)
    return float(both.any(dim=2).double().mean())


def test_past_the_limit_faiss_finds_what_it_says(monkeypatch):
    targets, queries = clustered(3000, 0), clustered(1000, 1)
    exact = NeighbourIndex(targets)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 3000)
    assert exact.exact
    truths = exact.among_themselves(20), exact.search(queries, 20)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 2999)
    index = NeighbourIndex(targets, seed=5)
    assert not index.exact
    for truth, found in zip(
        truths, (index.among_themselves(20), index.search(queries, 20)), strict=True
    ):
        assert found.recall >= 0.98
        assert share_found(truth, found) == pytest.approx(found.recall, abs=0.01)
        assert (found.similarity.diff(dim=1) <= 0).all()
    own = index.among_themselves(20).position
    assert (own != torch.arange(3000).unsqueeze(1)).all()


def test_recall_is_measured_and_not_assumed(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 100)
    targets, queries = unit_rows(3000, 16, 0), unit_rows(400, 16, 1)  # no clusters to lean on
    truth = neighbours._exact(queries, targets, None, 10)
    for wanted in (0.1, 0.9, 0.99):
        monkeypatch.setattr(neighbours, "_RECALL", wanted)
        found = NeighbourIndex(targets).search(queries, 10)
        assert found.recall >= wanted
        assert share_found(truth, found) == pytest.approx(found.recall, abs=1e-3)
    monkeypatch.setattr(neighbours, "_RECALL", 0.1)
    assert NeighbourIndex(targets).search(queries, 10).recall < 0.95


def test_faiss_searches_are_seeded(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 100)
    monkeypatch.setattr(neighbours, "_RECALL", 0.1)
    targets = unit_rows(2000, 16, 0)
    first, again, other = (
        NeighbourIndex(targets, seed).among_themselves(10).position for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@BLOCKED
def test_match_ranks_against_brute_force(values, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", values)
    queries, targets = unit_rows(30, 4, 0), unit_rows(30, 4, 1)
    similarity = queries.numpy() @ targets.numpy().T
    expected = [int((similarity[i] > similarity[i, i]).sum()) for i in range(30)]
    assert match_ranks(queries, targets).tolist() == expected
    assert match_ranks(queries, queries).tolist() == [0] * 30
