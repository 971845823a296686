"""Nearest neighbours: exact by blocked matrix products, past 20,000 rows by FAISS."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 20
"""The k of every neighbourhood (section 5 of the paper)."""

EXACT_ROWS = 20_000
"""Up to as many rows are searched exactly."""

_BLOCK_VALUES = 32_000_000  # similarities held at once: 128 MB of float32
_RECALL = 0.98
_RECALL_QUERIES = 500
_FIRST_PROBES = 8
_CANDIDATES_AT_ONCE = 8_000_000  # held by FAISS at once: 96 MB
_SAME = 1e-6  # a rounding error of the similarity: as near as the k-th exact neighbour


class Neighbours(NamedTuple):
    """The k nearest rows of each query, nearest first, and the recall of the search.

    `similarity` and `position` have shape (n, k); FAISS says -1 where it found fewer than k.
    """

    similarity: Tensor
    position: Tensor
    recall: float


class NeighbourIndex:
    """A search among unit rows `targets` (n, d), where the inner product orders by distance.

    Exact up to `EXACT_ROWS` rows. Past that FAISS clusters the rows (about sqrt(n) lists, seeded),
    scans 4-bit codes and orders the best candidates by their exact similarity. A search doubles
    the lists it looks into, and with them the candidates, until its recall, measured against exact
    search on 500 of its own queries, reaches 0.98.
    """

    def __init__(self, targets: Tensor, seed: int = 0) -> None:
        self._targets = targets
        self._seed = seed
        self._approximate: ApproximateIndex | None = None

    @property
    def exact(self) -> bool:
        """Whether every search is exact."""
        return self._targets.shape[0] <= EXACT_ROWS

    def search(self, queries: Tensor, count: int) -> Neighbours:
        """Return the `count` nearest targets of each query row, shape (m, d).

        Raises:
            ValueError: when there are fewer targets.
        """
        return self._search(queries, None, count)

    def among_themselves(self, count: int) -> Neighbours:
        """Return the `count` nearest others of each target.

        Raises:
            ValueError: when there are not more than `count` rows.
        """
        return self._search(self._targets, torch.arange(self._targets.shape[0]), count)

    def _search(self, queries: Tensor, own: Tensor | None, count: int) -> Neighbours:
        rows, needed = self._targets.shape[0], count + (own is not None)
        if rows < needed:
            raise ValueError(
                f"{count} nearest neighbours need at least {needed} rows, not {rows}; measure on "
                "more pairs"
            )
        if self.exact:
            return _exact(queries, self._targets, own, count)
        if self._approximate is None:
            self._approximate = ApproximateIndex(self._targets, self._seed)
        generator = torch.Generator().manual_seed(self._seed)
        sample = torch.randperm(queries.shape[0], generator=generator)[:_RECALL_QUERIES]
        asked, asked_own = queries[sample], None if own is None else own[sample]
        truth = _exact(asked, self._targets, asked_own, count)
        probes = _FIRST_PROBES
        while True:
            recall = _recall(truth, self._approximate.search(asked, asked_own, count, probes))
            if recall >= _RECALL or probes >= self._targets.shape[0]:  # then it looked at all
                break
            probes *= 2
        return self._approximate.search(queries, own, count, probes)._replace(recall=recall)


def _exact(queries: Tensor, targets: Tensor, own: Tensor | None, count: int) -> Neighbours:
    step = max(1, _BLOCK_VALUES // targets.shape[0])
    similarities, positions = [], []
    for start in range(0, queries.shape[0], step):
        similarity = queries[start : start + step] @ targets.T
        if own is not None:
            block = own[start : start + step].unsqueeze(1)
            similarity.scatter_(1, block, -torch.inf)
        nearest = similarity.topk(count, dim=1)
        similarities.append(nearest.values)
        positions.append(nearest.indices)
    return Neighbours(torch.cat(similarities), torch.cat(positions), 1.0)


class ApproximateIndex:
    """FAISS: an inverted file of 4-bit product codes, its best candidates ordered exactly."""

    def __init__(self, targets: Tensor, seed: int) -> None:
        import faiss  # loaded only where an exact search would take too long

        rows, width = targets.shape
        codes = width // math.gcd(width, 4)
        self._index: Any = faiss.index_factory(
            width, f"IVF{round(rows**0.5)},PQ{codes}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT
        )
        self._inverted_file: Any = faiss.extract_index_ivf(self._index)
        self._inverted_file.cp.seed = seed % (1 << 31)
        self._inverted_file.cp.spherical = True
        values = _values(targets)
        self._index.train(values)
        self._index.add(values)

    def search(self, queries: Tensor, own: Tensor | None, count: int, probes: int) -> Neighbours:
        """Return the nearest targets of queries (m, d), `own` (m,) excepted, in `probes` lists."""
        self._inverted_file.nprobe = probes
        asked, factor = count + (own is not None), max(4, probes // 8)
        self._index.k_factor = factor
        blocks = queries.split(max(1, _CANDIDATES_AT_ONCE // (factor * asked)))
        found = [self._index.search(_values(block), asked) for block in blocks]
        similarity, position = (
            torch.cat([torch.from_numpy(part) for part in parts])
            for parts in zip(*found, strict=True)
        )
        if own is not None:
            similarity = similarity.masked_fill(position == own.unsqueeze(1), -torch.inf)
            similarity, kept = similarity.topk(count, dim=1)
            position = position.gather(1, kept)
        return Neighbours(similarity, position, 0.0)


def _values(rows: Tensor) -> Any:
    return rows.to(torch.float32).contiguous().numpy()


def _recall(truth: Neighbours, found: Neighbours) -> float:
    """Return the share of neighbours found that are as near as the k-th of the truth."""
    furthest = truth.similarity[:, -1:].to(torch.float32)
    return float((found.similarity >= furthest - _SAME).to(torch.float64).mean())


def match_ranks(queries: Tensor, targets: Tensor) -> Tensor:
    """Return for each query row i how many targets are more similar than target i, shape (n,).

    Half of the other targets that are as similar count too, so that equal targets are no hits.
    Exact at any size: it counts, and keeps no neighbours.
    """
    step = max(1, _BLOCK_VALUES // targets.shape[0])
    ranks = []
    for start in range(0, queries.shape[0], step):
        similarity = queries[start : start + step] @ targets.T
        own = torch.arange(start, start + similarity.shape[0]).unsqueeze(1)
        matched = similarity.gather(1, own)
        others = (similarity == matched).sum(dim=1) - 1
        ranks.append((similarity > matched).sum(dim=1) + (others + 1) // 2)
    return torch.cat(ranks)
