"""Mixings of the dominant basis: Haar draws, and the one learned for stable phases."""

import numpy as np
import pytest
import torch

from pipeline.geometry import frame as frame_module
from pipeline.geometry.frame import fixed_frame
from pipeline.geometry.mixing import learned_mixing, mixing_matrix, phase_stability
from tests.geometry.samples import gaussian, rotation

WIDTH = 6


def images(rows: int = 400, width: int = WIDTH) -> torch.Tensor:
    """Return coordinates with a mean and coupled spread, turned so that no block shows them."""
    centre = torch.zeros(width, dtype=torch.float64)
    centre[0] = 2.0
    spread = torch.linspace(1.5, 0.3, width, dtype=torch.float64)
    return (gaussian(rows, width, 0) * spread + centre) @ rotation(width, 9)


def test_mixing_is_seeded():
    assert torch.equal(rotation(6, 1), rotation(6, 1))
    assert not torch.allclose(rotation(6, 1), rotation(6, 2))
    identity = torch.eye(6, dtype=torch.float64)
    assert torch.equal(mixing_matrix("identity", 6, 1, None), identity)
    with pytest.raises(ValueError, match=r"mixing must be learned, random or identity"):
        mixing_matrix("haar", 6, 1, None)


def test_random_mixing_is_haar():
    draws = torch.stack([rotation(4, seed) for seed in range(4000)])
    # Haar on O(r): entries have mean 0 and variance 1 / r, the trace has variance 1, both
    # determinants are equally likely. QR without the sign correction gives a trace far from 0.
    torch.testing.assert_close(draws.mean(dim=0), torch.zeros(4, 4).double(), atol=0.04, rtol=0)
    torch.testing.assert_close(
        draws.var(dim=0), torch.full((4, 4), 0.25).double(), atol=0.02, rtol=0
    )
    trace = draws.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert abs(trace.mean()) < 0.06
    assert abs(trace.var() - 1) < 0.08
    assert abs((torch.linalg.det(draws) > 0).double().mean() - 0.5) < 0.04


def test_phase_stability_against_plain_loops():
    rows = images(50)
    blocks = rows.numpy().reshape(50, 3, 2)
    phasors = np.exp(1j * np.arctan2(blocks[..., 1], blocks[..., 0]))
    energy = (blocks**2).sum(axis=2).mean(axis=0)
    anchored = sum(energy[k] / energy.sum() * abs(phasors[:, k].mean()) ** 2 for k in range(3))
    coupling = abs(phasors.T @ phasors.conj() / 50)
    every = [(0, 1), (0, 2), (1, 2)]
    expected = anchored + np.mean([coupling[edge] ** 2 for edge in every])
    assert float(phase_stability(rows)) == pytest.approx(expected, rel=1e-9)
    # With one neighbour each, the graph is the union of every block's strongest edge.
    masked = coupling - np.eye(3)
    edges = {tuple(sorted((k, int(masked[k].argmax())))) for k in range(3)}
    sparse = anchored + np.mean([coupling[edge] ** 2 for edge in edges])
    assert float(phase_stability(rows, neighbours=1)) == pytest.approx(sparse, rel=1e-9)


def test_phase_stability_of_fixed_and_of_uniform_phases():
    fixed = torch.tensor([[1.0, 2.0, -3.0, 0.5]]).double().repeat(30, 1)
    assert float(phase_stability(fixed)) == pytest.approx(2)
    assert float(phase_stability(fixed[:, :2])) == pytest.approx(1)  # one block, no edge
    assert float(phase_stability(gaussian(20_000, WIDTH, 0))) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("width", [2, WIDTH])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_learned_mixing_is_orthogonal_and_stabler_than_its_start(width, seed):
    rows = images(width=width)
    learned = learned_mixing(rows, seed)
    torch.testing.assert_close(learned.T @ learned, torch.eye(width, dtype=torch.float64))
    reached, start = (phase_stability(rows @ turn) for turn in (learned, rotation(width, seed)))
    # A turn within a single block moves all of its phases alike: its J cannot rise.
    assert reached > (start + 0.1 if width > 2 else start - 1e-9)


def test_a_learned_mixing_is_the_same_every_time():
    learned = learned_mixing(images(), 0)
    torch.rand(3)  # the global generator plays no role
    assert torch.equal(mixing_matrix("learned", WIDTH, 0, images()), learned)
    assert not torch.allclose(learned_mixing(images(), 1), learned, atol=1e-3)


def test_a_mixing_is_learned_from_rows_taken_evenly(monkeypatch):
    rows = images(100)
    monkeypatch.setattr(frame_module, "MIXING_ROWS", 40)
    structure = rows.T @ rows
    thinned = fixed_frame(structure, WIDTH, "learned", 0, rows)
    assert torch.equal(thinned.basis, fixed_frame(structure, WIDTH, "learned", 0, rows[::3]).basis)
