"""Drift: how far new text embeddings lie from those that an aligner was fitted on.

Three distances, each zero in expectation where both are samples of one distribution, however few
rows there are: what sampling alone would show is taken off.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.geometry.moments import Moments
from pipeline.geometry.polar import EPSILON

BLOCKS = 16
"""Leading two-dimensional blocks whose radii are counted, fewer where embeddings are narrow."""
_BINS = 64
_ROWS_AT_ONCE = 1024
_EXPECTED_KOLMOGOROV = math.sqrt(math.pi / 2) * math.log(2)
"""Mean of Kolmogorov's distribution: E sup|F_n - F| is this over sqrt(n)."""


@dataclass(frozen=True)
class RadialBins:
    """Bins of the radii of the text's leading principal planes.

    `mean` (d,), `basis` (d, 2m) orthonormal columns, `edges` (m, bins - 1) ascending; float64.
    """

    mean: Tensor
    basis: Tensor
    edges: Tensor

    @classmethod
    def of(cls, moments: Moments) -> RadialBins:
        """Return bins that are about equally full where the text is Gaussian in each plane."""
        width = 2 * min(BLOCKS, moments.dimension // 2)
        values, vectors = torch.linalg.eigh(moments.covariance)
        leading, basis = values.flip(0)[:width], vectors.flip(1)[:, :width]
        scale = leading.clamp(min=0).unflatten(0, (-1, 2)).mean(dim=1).sqrt()
        levels = torch.arange(1, _BINS, dtype=torch.float64) / _BINS
        rayleigh = torch.sqrt(-2 * torch.log1p(-levels))
        # A copy of the mean: safetensors refuses tensors that share memory.
        return cls(moments.mean.clone(), basis.contiguous(), scale[:, None] * rayleigh)

    def count(self, embeddings: Tensor) -> RadialCounts:
        """Return how many of the embeddings (n, d) fall in each bin of each block."""
        blocks, bins = self.edges.shape[0], self.edges.shape[1] + 1
        counts = torch.zeros(blocks, bins, dtype=torch.int64)
        # Single precision: a bin is wider than its rounding by five orders of magnitude.
        basis, squared_edges = self.basis.to(torch.float32), self.edges.square().to(torch.float32)
        origin = (self.mean @ self.basis).to(torch.float32)
        for rows in embeddings.split(_ROWS_AT_ONCE):
            coordinates = torch.addmm(-origin, rows.to("cpu", torch.float32), basis).square_()
            # As polar coordinates have it: a plane without variance counts in the last bin.
            squared = (coordinates.unflatten(1, (blocks, 2)).sum(dim=2) + EPSILON).T.contiguous()
            found = torch.searchsorted(squared_edges, squared)
            counts.scatter_add_(1, found, torch.ones_like(found))
        return RadialCounts(counts)

    @property
    def digest(self) -> str:
        """Digest (40 hex digits) of the bins: counts of other bins do not go together with them."""
        digest = hashlib.blake2b(digest_size=20)
        for tensor in (self.mean, self.basis, self.edges):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Return the bins as named tensors, the inverse of `from_tensors`."""
        return {"mean": self.mean, "basis": self.basis, "edges": self.edges}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RadialBins:
        """Rebuild bins from `tensors()`."""
        return cls(tensors["mean"], tensors["basis"], tensors["edges"])


@dataclass(frozen=True)
class RadialCounts:
    """Rows in each bin of each block, (m, bins), int64: the mergeable state of m distributions."""

    counts: Tensor

    def merge(self, other: RadialCounts) -> RadialCounts:
        """Return the counts of both sets of rows."""
        assert self.counts.shape == other.counts.shape, "counts of different bins"
        return RadialCounts(self.counts + other.counts)

    @property
    def rows(self) -> int:
        """Number of rows counted."""
        return int(self.counts[0].sum()) if self.counts.numel() else 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {"counts": self.counts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RadialCounts:
        """Rebuild a state from `tensors()`."""
        return cls(tensors["counts"])


@dataclass(frozen=True)
class TextStatistics:
    """Moments of text embeddings and, where bins were given, their radii: mergeable."""

    moments: Moments
    radii: RadialCounts | None = None

    @classmethod
    def of(cls, embeddings: Tensor, bins: RadialBins | None) -> TextStatistics:
        """Return the state of one block of embeddings (n, d)."""
        return cls(Moments.of(embeddings), None if bins is None else bins.count(embeddings))

    def merge(self, other: TextStatistics) -> TextStatistics:
        """Return the state of both sets of embeddings."""
        radii = None
        if self.radii is not None and other.radii is not None:
            radii = self.radii.merge(other.radii)
        return TextStatistics(self.moments.merge(other.moments), radii)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {**self.moments.tensors(), **(self.radii.tensors() if self.radii else {})}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TextStatistics:
        """Rebuild a state from `tensors()`."""
        radii = RadialCounts.from_tensors(tensors) if "counts" in tensors else None
        return cls(Moments.from_tensors(tensors), radii)


@dataclass(frozen=True)
class Drift:
    """Distances of `rows` embeddings from the fitting text.

    `centroid`: between the means, in units of the fitting text's root mean square distance from
    its own mean. `covariance`: relative Frobenius distance of the covariances, each divided by its
    trace. `radial`: Kolmogorov-Smirnov distance of the radii, mean over the blocks; None where the
    aligner does not carry their distribution.
    """

    rows: int
    centroid: float
    covariance: float
    radial: float | None

    def to_mapping(self) -> dict[str, float | int | None]:
        """Return the distances as plain values."""
        return dict(vars(self))


def measure_drift(reference: TextStatistics, found: TextStatistics) -> Drift:
    """Return the drift of embeddings from the fitting text; radii have to be of the same bins.

    Raises:
        ValueError: when either is empty, or their widths differ.
    """
    fitted, new = reference.moments, found.moments
    if fitted.count == 0 or new.count == 0:
        raise ValueError("the drift of no embeddings, or from none, does not exist")
    if fitted.dimension != new.dimension:
        raise ValueError(
            f"embeddings of width {new.dimension} cannot have drifted from embeddings of width "
            f"{fitted.dimension}; they come from two encoders"
        )
    radial = None
    if reference.radii is not None and found.radii is not None:
        radial = _radial_drift(reference.radii, found.radii)
    return Drift(
        rows=new.count,
        centroid=_centroid_drift(fitted, new),
        covariance=_covariance_drift(fitted, new),
        radial=radial,
    )


def _centroid_drift(reference: Moments, found: Moments) -> float:
    # ||m - m'||^2 exceeds ||mu - mu'||^2 by tr(Sigma) / n + tr(Sigma') / n' in expectation.
    squared = float((found.mean - reference.mean).square().sum())
    noise = sum(_trace(one) / one.count for one in (reference, found))
    spread = _trace(reference)
    if spread == 0.0:
        return 0.0 if squared == 0.0 else math.inf
    return math.sqrt(max(0.0, squared - noise) / spread)


def _covariance_drift(reference: Moments, found: Moments) -> float:
    shapes, noise = [], 0.0
    for one in (reference, found):
        trace = _trace(one)
        if trace == 0.0:  # a single row, or copies of one: no shape to compare
            return 0.0
        shape = one.covariance / trace
        shapes.append(shape)
        # E||S - Sigma||^2 = (tr(Sigma)^2 + tr(Sigma^2)) / n for a Gaussian.
        noise += (1.0 + float(shape.square().sum())) / one.count
    squared = float((shapes[1] - shapes[0]).square().sum())
    return math.sqrt(max(0.0, squared - noise) / float(shapes[0].square().sum()))


def _radial_drift(reference: RadialCounts, found: RadialCounts) -> float:
    distributions = [
        one.counts.cumsum(dim=1)[:, :-1].to(torch.float64) / one.rows for one in (reference, found)
    ]
    distances = (distributions[1] - distributions[0]).abs().amax(dim=1)
    expected = _EXPECTED_KOLMOGOROV * math.sqrt(1 / reference.rows + 1 / found.rows)
    return max(0.0, float(distances.mean()) - expected)


def _trace(moments: Moments) -> float:
    return float(moments.scatter.diagonal().sum()) / moments.count
