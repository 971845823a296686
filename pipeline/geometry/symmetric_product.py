"""X^T X in float64, by one triangle: that makes up for float64 being half as fast."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from threadpoolctl import ThreadpoolController
from torch import Tensor

_PANELS = 5
"""Products that a triangle is made of, at least; more waste less, fewer are faster each."""
_NARROWEST_PANEL = 128


class SymmetricProduct:
    """The sum of X^T X, (d, d) float64, over blocks X (n, d).

    On one thread, as in a worker, by BLAS's own routine for it; with more by torch, whose threads
    another library's would only wait for.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        """Begin with zero."""
        # In Fortran's order, so that BLAS adds to it in place.
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device).T
        self._by_blas = device.type == "cpu" and torch.get_num_threads() == 1
        self._panel = max(_NARROWEST_PANEL, -(-width // _PANELS))

    def add(self, rows: Tensor) -> None:
        """Add X^T X of rows X (n, d), float64."""
        if self._by_blas:
            with _threads().limit(limits=1, user_api="blas"):
                found = dsyrk(1.0, rows.numpy().T, beta=1.0, c=self._sum.numpy(), overwrite_c=True)
            assert np.shares_memory(found, self._sum.numpy()), "BLAS made a copy"
            return
        for start in range(0, len(self._sum), self._panel):
            columns = rows[:, start : start + self._panel]
            self._sum[start : start + self._panel, start:].addmm_(columns.T, rows[:, start:])

    @property
    def result(self) -> Tensor:
        """The sum, both triangles."""
        upper = self._sum.triu()
        return upper + upper.triu(1).T


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()
