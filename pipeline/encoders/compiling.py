"""A tower's forward through torch.compile, compiled once for batches of every size."""

from __future__ import annotations

from collections.abc import Callable

import torch

Forward = Callable[[torch.Tensor], torch.Tensor]


def compiled(forward: Forward, *, varying: tuple[int, ...]) -> Forward:
    """Return a compiled forward from batches `(n, ...)` to `(n, d)`, of axes that vary."""
    inner = torch.compile(forward)

    def call(batch: torch.Tensor) -> torch.Tensor:
        rows = len(batch)
        if rows == 1:  # torch takes a size of one for a constant, and would compile anew
            batch = torch.cat([batch, batch])
        for axis in varying:
            torch._dynamo.maybe_mark_dynamic(batch, axis)
        return inner(batch)[:rows]

    return call
