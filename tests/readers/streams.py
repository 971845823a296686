"""A dataset read as a stream, in the few words that the tests of it share."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from pipeline.readers import SubstituteDataset

ROWS = [23, 0, 7, 40, 11]
TOTAL = sum(ROWS)


def dataset(root: str, **options: Any) -> SubstituteDataset:
    return SubstituteDataset(root, **{"buffer_size": 8, "rank": 0, "world_size": 1, **options})


def names(rows: Any) -> list[str]:
    return [row["id"] for row in rows]


def loader(source: SubstituteDataset, **options: Any) -> DataLoader[Any]:
    return DataLoader(source, **{"batch_size": 4, "num_workers": 2, **options})


def batches(source: Any) -> list[list[str]]:
    return [batch["id"] for batch in source]
