import numpy as np
import pytest
import torch

from pipeline.geometry import neighbours
from pipeline.geometry.neighbours import match_ranks, nearest_neighbours
from tests.geometry.samples import unit_rows

BLOCKED = pytest.mark.parametrize("values", [32_000_000, 100, 1])


@BLOCKED
def test_neighbours_against_brute_force(values, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", values)
    points = unit_rows(40, 5, 0)
    found = nearest_neighbours(points, 6).numpy()
    for row, point in enumerate(points.numpy()):
        distances = np.linalg.norm(points.numpy() - point, axis=1)
        distances[row] = np.inf
        assert found[row].tolist() == np.argsort(distances)[:6].tolist()


def test_a_row_is_not_its_own_neighbour_even_among_copies():
    points = unit_rows(5, 4, 0).repeat(3, 1)
    found = nearest_neighbours(points, 2)
    assert (found != torch.arange(15).unsqueeze(1)).all()
    assert (found % 5 == (torch.arange(15) % 5).unsqueeze(1)).all()


def test_too_few_rows():
    assert nearest_neighbours(unit_rows(4, 3, 0), 3).shape == (4, 3)
    with pytest.raises(ValueError, match="3 nearest neighbours need more than 3 rows, not 3"):
        nearest_neighbours(unit_rows(3, 3, 0), 3)


@BLOCKED
def test_match_ranks_against_brute_force(values, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", values)
    queries, targets = unit_rows(30, 4, 0), unit_rows(30, 4, 1)
    similarity = queries.numpy() @ targets.numpy().T
    expected = [int((similarity[i] > similarity[i, i]).sum()) for i in range(30)]
    assert match_ranks(queries, targets).tolist() == expected
    assert match_ranks(queries, queries).tolist() == [0] * 30
