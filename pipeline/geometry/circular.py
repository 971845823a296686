"""Circular statistics of block phases: anchors, couplings, graph, drift (section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.geometry.polar import EPSILON

_CHUNK_ROWS = 4096  # what is made of so many rows stays in a processor's cache


@dataclass(frozen=True)
class CircularSums:
    """Mergeable sums behind the circular statistics of m blocks, float64.

    `phasor` (m,) is sum e^{i theta_k}; `pair` (m, m) is sum e^{i(theta_k - theta_l)}; `energy` (m,)
    is sum rho_k^2.
    """

    count: int
    phasor: Tensor
    pair: Tensor
    energy: Tensor

    @classmethod
    def zero(cls, blocks: int) -> CircularSums:
        """Return the neutral element of `merge`."""
        return cls(
            0,
            torch.zeros(blocks, dtype=torch.complex128),
            torch.zeros(blocks, blocks, dtype=torch.complex128),
            torch.zeros(blocks, dtype=torch.float64),
        )

    @classmethod
    def of(cls, coordinates: Tensor) -> CircularSums:
        """Return the sums over one block of samples, coordinates (n, r).

        e^{i theta} is the block divided by its length, so that no angle is taken; a block at the
        origin has none and adds nothing. One real product (r, n) x (n, r) holds all four sums of
        products of sines and cosines.
        """
        rows, rank = coordinates.shape
        double = torch.zeros(rank + 1, rank, dtype=torch.float64, device=coordinates.device)
        products, total, energy = double[:rank], double[rank], double.new_zeros(rank // 2)
        for part in coordinates.split(_CHUNK_ROWS):
            blocks = torch.view_as_complex(part.contiguous().unflatten(-1, (-1, 2)))
            unit = torch.view_as_real(torch.sgn(blocks)).flatten(-2).to(torch.float64)
            ones = unit.new_ones(len(unit))
            products.addmm_(unit.T, unit)
            total.addmv_(unit.T, ones)
            squares = blocks.real.square().addcmul_(blocks.imag, blocks.imag)
            energy.addmv_(squares.to(torch.float64).T, ones)
        sums = products.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
        real = sums[:, 0, :, 0] + sums[:, 1, :, 1]
        imaginary = sums[:, 1, :, 0] - sums[:, 0, :, 1]
        return cls(
            rows,
            torch.view_as_complex(total.unflatten(0, (-1, 2))).cpu(),
            torch.complex(real, imaginary).cpu(),
            energy.cpu(),
        )

    def merge(self, other: CircularSums) -> CircularSums:
        """Return the sums over both sets of samples."""
        return CircularSums(
            self.count + other.count,
            self.phasor + other.phasor,
            self.pair + other.pair,
            self.energy + other.energy,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named real tensors, the inverse of `from_tensors`."""
        return {
            "count": torch.tensor([self.count]),
            "phasor": torch.view_as_real(self.phasor).contiguous(),
            "pair": torch.view_as_real(self.pair).contiguous(),
            "energy": self.energy,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> CircularSums:
        """Rebuild a state from `tensors()`."""
        return cls(
            int(tensors["count"][0]),
            torch.view_as_complex(tensors["phasor"].contiguous()),
            torch.view_as_complex(tensors["pair"].contiguous()),
            tensors["energy"],
        )


def dependency_graph(coupling: Tensor, neighbours: int) -> Tensor:
    """Return the block-adaptive graph as undirected edges, shape (e, 2), k < l, sorted.

    Each block brings its `neighbours` strongest others by A_kl, shape (m, m); the graph is the
    union of these pairs (section 4.3).
    """
    blocks = coupling.shape[0]
    strength = coupling.clone()
    strength.fill_diagonal_(-1.0)
    chosen = strength.topk(min(neighbours, blocks - 1), dim=1).indices
    sources = torch.arange(blocks).unsqueeze(1).expand_as(chosen)
    pairs = torch.stack((sources.reshape(-1), chosen.reshape(-1)), dim=1)
    return torch.unique(pairs.sort(dim=1).values, dim=0)


@dataclass(frozen=True)
class PhaseStructure:
    """The target's circular structure: anchors, weights, couplings on a graph (section 4.3).

    `anchor` psi (m,) radians, `weight` alpha (m,) summing to 1, `coupling` A (m, m) and `offset`
    eta (m, m) of all pairs, `edges` (e, 2).
    """

    anchor: Tensor
    weight: Tensor
    coupling: Tensor
    offset: Tensor
    edges: Tensor

    @classmethod
    def of(cls, sums: CircularSums, neighbours: int) -> PhaseStructure:
        """Return the structure of merged sums; raises ValueError when nothing was counted."""
        if sums.count == 0:
            raise ValueError("the phase structure of no target embeddings does not exist")
        moment = sums.pair / sums.count
        coupling = moment.abs()
        return cls(
            anchor=sums.phasor.angle(),
            weight=sums.energy / (sums.energy.sum() + EPSILON),
            coupling=coupling,
            offset=moment.angle(),
            edges=dependency_graph(coupling, neighbours),
        )

    @property
    def blocks(self) -> int:
        """Number m of blocks."""
        return self.anchor.shape[0]

    def edge_values(self, matrix: Tensor) -> Tensor:
        """Return the entries of a pair matrix (m, m) on the edges, shape (e,)."""
        return matrix[self.edges[:, 0], self.edges[:, 1]]

    def potential(self, phase: Tensor) -> Tensor:
        """Return Psi(phi), shape (n,), of phases (n, m)."""
        unary = self.weight * (1 - torch.cos(phase - self.anchor))
        differences = phase[..., self.edges[:, 0]] - phase[..., self.edges[:, 1]]
        pairwise = self.edge_values(self.coupling) * (
            1 - torch.cos(differences - self.edge_values(self.offset))
        )
        return unary.sum(dim=-1) + pairwise.sum(dim=-1)

    def drift(self, phase: Tensor) -> Tensor:
        """Return grad Psi(phi), shape (n, m), of phases (n, m).

        With u = e^{i phi} the edge sum of block k is Im(u_k sum_l conj(M_kl u_l)), so the whole
        field costs two real (n, m) x (m, m) products for each of sin and cos.
        """
        real, imaginary = self._edge_moment
        sine, cosine = torch.sin(phase), torch.cos(phase)
        # sum_l conj(M_kl) conj(u_l); conj(M_kl) = A_kl e^{-i eta_kl}.
        pulled_real = cosine @ real.T - sine @ imaginary.T
        pulled_imaginary = -(cosine @ imaginary.T + sine @ real.T)
        pairwise = sine * pulled_real + cosine * pulled_imaginary
        return self.weight * torch.sin(phase - self.anchor) + pairwise

    @cached_property
    def _edge_moment(self) -> tuple[Tensor, Tensor]:
        """Return real and imaginary part of M_kl on the graph, zero elsewhere, both (m, m)."""
        mask = torch.zeros_like(self.coupling)
        mask[self.edges[:, 0], self.edges[:, 1]] = 1
        mask[self.edges[:, 1], self.edges[:, 0]] = 1
        masked = self.coupling * mask
        return masked * torch.cos(self.offset), masked * torch.sin(self.offset)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> PhaseStructure:
        """Return the structure in another floating dtype or on another device."""
        return PhaseStructure(
            self.anchor.to(device, dtype),
            self.weight.to(device, dtype),
            self.coupling.to(device, dtype),
            self.offset.to(device, dtype),
            self.edges.to(device),
        )
