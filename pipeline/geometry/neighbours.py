"""Exact nearest neighbours by blocked matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_VALUES = 32_000_000  # similarities held at once: 128 MB of float32


def nearest_neighbours(points: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` most similar other rows, shape (n, count).

    `points` (n, d) are unit rows, so the inner product orders by distance.

    Raises:
        ValueError: when there are not more than `count` rows.
    """
    rows = points.shape[0]
    if rows <= count:
        raise ValueError(f"{count} nearest neighbours need more than {count} rows, not {rows}")
    step = max(1, _BLOCK_VALUES // rows)
    found = []
    for start in range(0, rows, step):
        block = points[start : start + step]
        similarity = block @ points.T
        similarity[
            torch.arange(block.shape[0]), torch.arange(start, start + block.shape[0])
        ] = -torch.inf
        found.append(similarity.topk(count, dim=1).indices)
    return torch.cat(found)


def match_ranks(queries: Tensor, targets: Tensor) -> Tensor:
    """Return for each query row i how many targets are more similar than target i, shape (n,)."""
    rows = queries.shape[0]
    step = max(1, _BLOCK_VALUES // rows)
    ranks = []
    for start in range(0, rows, step):
        block = queries[start : start + step]
        similarity = block @ targets.T
        own = similarity.gather(1, torch.arange(start, start + block.shape[0]).unsqueeze(1))
        ranks.append((similarity > own).sum(dim=1))
    return torch.cat(ranks)
