"""Every row is served once, within the budget, whatever the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.encoders.micro_batches import MicroBatches


@given(
    lengths=st.lists(st.integers(1, 77), max_size=40),
    budget=st.integers(1, 400),
    memory=st.integers(77, 400),
)
def test_every_row_once_within_the_budget(lengths: list[int], budget: int, memory: int) -> None:
    def forward(rows: NDArray[np.int64], longest: int) -> torch.Tensor:
        assert longest == max(lengths[row] for row in rows)
        assert min(lengths[row] for row in rows) >= 0.75 * longest
        assert len(rows) == 1 or len(rows) * longest <= budget
        if len(rows) * longest > memory:
            raise torch.OutOfMemoryError("pretended")
        return torch.from_numpy(rows)

    served: list[int] = []
    for rows, part in MicroBatches(budget).run(np.array(lengths, dtype=np.int64), forward):
        assert part.tolist() == rows.tolist()
        served += rows.tolist()
    assert sorted(served) == list(range(len(lengths)))


def test_other_errors_are_not_retried() -> None:
    calls = []

    def forward(rows: NDArray[np.int64], _longest: int) -> torch.Tensor:
        calls.append(len(rows))
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(MicroBatches(8).run(np.ones(8, dtype=np.int64), forward))
    assert calls == [8]
