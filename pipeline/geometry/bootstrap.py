"""The bootstrap over pairs: resampled weights, weighted means, percentile intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CONFIDENCE = 0.95
_BLOCK_VALUES = 8_000_000  # pair weights held at once: 64 MB of float64


@dataclass(frozen=True)
class Resamples:
    """How often each of n pairs was drawn in n draws with replacement: `counts` (b, n), float32.

    All methods are measured under the same resamples.
    """

    counts: Tensor

    @classmethod
    def draw(cls, rows: int, count: int, generator: torch.Generator) -> Resamples:
        """Return `count` seeded resamples of `rows` pairs."""
        counts = torch.empty(count, rows)
        for resample in counts:
            drawn = torch.randint(rows, (rows,), generator=generator)
            resample.copy_(torch.bincount(drawn, minlength=rows))
        return cls(counts)

    def means(self, values: Tensor) -> Tensor:
        """Return the weighted means (b, c) of values (n, c)."""
        return self.counts.to(values.dtype) @ values / values.shape[0]

    def second_moments(self, rows: Tensor) -> Tensor:
        """Return the weighted second moments (b, q, q) of rows (n, q)."""
        moments = [(rows * counts.unsqueeze(1)).T @ rows for counts in self.counts]
        return torch.stack(moments) / rows.shape[0]

    def correlations(self, values: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return the weighted correlations (b,) of two columns of values (p, 2), float64.

        Value i belongs to the pairs `first[i]` and `second[i]` and has the weight w_i w_j.
        """
        centred = values - values.mean(dim=0)
        x, y = centred.unbind(dim=1)
        terms = torch.stack((torch.ones_like(x), x, y, x * x, y * y, x * y), dim=1)
        by_row = self.counts.T.contiguous()
        sums = torch.zeros(self.counts.shape[0], terms.shape[1], dtype=terms.dtype)
        step = max(1, _BLOCK_VALUES // self.counts.shape[0])
        for i, j, block in zip(
            first.split(step), second.split(step), terms.split(step), strict=True
        ):
            sums += (by_row[i] * by_row[j]).to(terms.dtype).T @ block
        x_mean, y_mean, xx, yy, xy = (sums[:, 1:] / sums[:, :1]).unbind(dim=1)
        variances = (xx - x_mean * x_mean) * (yy - y_mean * y_mean)
        return (xy - x_mean * y_mean) / variances.sqrt()


def percentile_interval(replicates: Tensor) -> list[float]:
    """Return the 95 % percentile interval [low, high] of replicates (b,)."""
    tail = (1 - _CONFIDENCE) / 2
    bounds = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return [float(bound) for bound in torch.quantile(replicates.to(torch.float64), bounds)]
