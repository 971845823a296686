"""Micro-batches under a budget that shrinks when the device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_ENOUGH = 1024
"""Tokens of a micro-batch that a processor works on at full speed."""


class MicroBatches:
    """Cuts rows in micro-batches of at most `budget` tokens and halves them when memory runs out.

    A micro-batch costs its number of rows times the length of its longest row; one row is always
    allowed. It ends where lengths change once it has `_ENOUGH` tokens, and before a row shorter
    than three quarters of its longest, so that little is padding. A budget that was halved stays
    halved: the device won't have grown by the next call.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def run(
        self,
        lengths: NDArray[np.int64],
        forward: Callable[[NDArray[np.int64], int], torch.Tensor],
    ) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Yield `(rows, forward(rows, longest))` until every row was served once.

        Rows go longest first: padding stays small, and memory runs out at the start if at all.

        Args:
            lengths: tokens of each row, `(n,)`.
            forward: maps row indices `(m,)` and their greatest length to embeddings `(m, d)`.

        Raises:
            torch.OutOfMemoryError: if one row alone doesn't fit.
        """
        order = np.argsort(-lengths, kind="stable")
        descending = lengths[order]
        start = 0
        while start < len(order):
            longest = int(descending[start])
            similar = self._similar(descending[start:])
            rows = order[start : start + min(similar, max(1, self.budget // longest))]
            part = self._attempt(forward, rows, longest)
            # Retried out here, past the except clause: there the traceback still holds the
            # activations of the failed forward.
            if part is None:
                self._halve(len(rows), longest)
                continue
            yield rows, part
            start += len(rows)

    @staticmethod
    def _similar(descending: NDArray[np.int64]) -> int:
        """Return how many of the first rows to take together, lengths falling, `(n,)`."""
        longest = int(descending[0])
        enough = min(-(-_ENOUGH // longest), len(descending)) - 1
        # Whole lengths: all rows as long as the one that makes it enough.
        similar = np.count_nonzero(descending >= descending[enough])
        return min(int(similar), int(np.count_nonzero(4 * descending >= 3 * longest)))

    @staticmethod
    def _attempt(
        forward: Callable[[NDArray[np.int64], int], torch.Tensor],
        rows: NDArray[np.int64],
        longest: int,
    ) -> torch.Tensor | None:
        try:
            return forward(rows, longest)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            return None

    def _halve(self, rows: int, longest: int) -> None:
        # Half of what was tried, not of the budget: a batch may lie far below its budget.
        self.budget = rows // 2 * longest
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "The device ran out of memory on %d rows of length %d; the budget is now %d.",
            rows,
            longest,
            self.budget,
        )
