"""Mixing of the dominant basis by an orthogonal matrix R (section 4.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.geometry.circular import dependency_graph
from pipeline.geometry.polar import to_polar

Mixing = Literal["learned", "random", "identity"]

MIXING_ROWS = 4_096
"""Image rows that learning a mixing looks at, at most."""

_STEPS = 300
_LEARNING_RATE = 0.05


def mixing_rows(mixing: Mixing) -> int:
    """Return how many image rows a kind of mixing looks at, at most: none but a learned one's."""
    return MIXING_ROWS if mixing == "learned" else 0


def mixing_matrix(mixing: Mixing, rank: int, seed: int, coordinates: Tensor | None) -> Tensor:
    """Return R in O(r), shape (r, r), float64: learned, Haar-random or the identity.

    `coordinates` (n, r) of images in the unmixed basis are what a mixing is learned from.

    Raises:
        ValueError: for an unknown kind of mixing.
    """
    if mixing == "identity":
        return torch.eye(rank, dtype=torch.float64)
    if mixing == "random":
        return _haar_matrix(rank, seed)
    if mixing == "learned":
        assert coordinates is not None, "a mixing is learned from images"
        return learned_mixing(coordinates, seed)
    raise ValueError(f"align.mixing must be learned, random or identity, not {mixing!r}")


def _haar_matrix(rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(rank, rank, dtype=torch.float64, generator=generator)
    orthogonal, triangular = torch.linalg.qr(gaussian)
    # QR alone is not Haar: the sign of R's diagonal has to be moved into Q.
    return orthogonal * torch.sign(torch.diagonal(triangular))


def phase_stability(coordinates: Tensor, neighbours: int = 4) -> Tensor:
    """Return J = sum_k alpha_k |E e^{i theta_k}|^2 + mean over edges of |M_kl|^2, a scalar.

    `coordinates` (n, r) of images; weights, couplings and graph as in section 4.3, the graph taken
    as given where J is differentiated.
    """
    polar = to_polar(coordinates)
    phasors = torch.polar(torch.ones_like(polar.phase), polar.phase)
    energy = polar.radius.square().mean(dim=0)
    anchored = (energy / energy.sum() * phasors.mean(dim=0).abs().square()).sum()
    coupling = (phasors.T @ phasors.conj() / phasors.shape[0]).abs()
    edges = dependency_graph(coupling.detach(), neighbours)
    if edges.shape[0] == 0:
        return anchored
    return anchored + coupling[edges[:, 0], edges[:, 1]].square().mean()


def learned_mixing(coordinates: Tensor, seed: int) -> Tensor:
    """Return the R in O(r) that gradient ascent on J finds from a Haar draw, float64.

    `coordinates` (n, r) of images in the unmixed basis; R is Cayley-parametrised (Adam, cosine
    decay), and the best of its steps is kept. J has many maxima, and its graph changes by jumps:
    the same rows in the same order give the same R, another order may climb another of them.
    """
    rank = coordinates.shape[1]
    start = _haar_matrix(rank, seed)
    rows = coordinates.to(torch.float64) @ start
    # Drawn weights would take from torch's global generator, and be written over.
    turn = nn.utils.skip_init(nn.Linear, rank, rank, bias=False, dtype=torch.float64)
    nn.init.eye_(turn.weight)
    nn.utils.parametrizations.orthogonal(turn, orthogonal_map="cayley")
    optimizer = torch.optim.Adam(turn.parameters(), lr=_LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    best, mixing = -torch.inf, start
    for _ in range(_STEPS):
        stability = phase_stability(rows @ turn.weight)
        if float(stability.detach()) > best:
            best, mixing = float(stability.detach()), start @ turn.weight.detach()
        optimizer.zero_grad()
        (-stability).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
    return mixing
