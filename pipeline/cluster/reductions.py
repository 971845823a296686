"""Merging partial states of a corpus in a tree of fixed shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray.data
import safetensors.torch
from ray.exceptions import RayError

from pipeline.cluster.errors import user_error
from pipeline.report.console import Reporter
from pipeline.stages.accumulate import Accumulate, Measure
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.norms import Norms

MOST_UNITS_PER_GROUP = 8
"""Units that one task merges: their states pass through the driver one by one."""
GROUPS = 32
"""Fewer units than this many full groups make smaller ones, so that all workers end together."""
_MOST_RETRIES = 10
"""Of a task whose process or machine dies; Ray Data's own default is without end."""


class TreeReduction:
    """Merges states given by index, in any order, always along the same binary tree.

    Siblings merge as soon as both are there, so that few states are held at once and the result
    has the same bits whatever the order of arrival.
    """

    def __init__(self, leaves: int) -> None:
        self._sizes = [leaves]
        while self._sizes[-1] > 1:
            self._sizes.append((self._sizes[-1] + 1) // 2)
        self._waiting: dict[tuple[int, int], Any] = {}

    def add(self, index: int, state: Any | None) -> None:
        """Add the state of a leaf; None stands for a leaf without rows."""
        level = 0
        while level < len(self._sizes) - 1:
            sibling = index ^ 1
            if sibling < self._sizes[level]:
                if (level, sibling) not in self._waiting:
                    break
                other = self._waiting.pop((level, sibling))
                left, right = (state, other) if index < sibling else (other, state)
                state = right if left is None else left if right is None else left.merge(right)
            level, index = level + 1, index // 2
        self._waiting[(level, index)] = state

    @property
    def result(self) -> Any | None:
        """The merged state of all leaves, None when no leaf had rows."""
        assert list(self._waiting) == [(len(self._sizes) - 1, 0)], "a leaf is missing"
        return self._waiting[(len(self._sizes) - 1, 0)]


@dataclass(frozen=True)
class Reduced:
    """A merged state, the rows it stands for, those that could not be used, and their norms."""

    state: Any
    rows: int
    rejected: int
    norms: Norms = field(default_factory=Norms)


def reduce_corpus(
    corpus: Corpus,
    units: Sequence[Unit],
    dimension: int,
    measure: Measure,
    *,
    title: str,
    reporter: Reporter,
    ids_root: str | None = None,
) -> Reduced:
    """Accumulate a measure over the embeddings of a corpus, one pass; `ids_root` as `Accumulate`.

    Raises:
        ValueError: when a unit cannot be read or no row can be used.
    """
    (reduced,) = reduce_each(
        corpus,
        [units],
        dimension,
        measure,
        title=title,
        reporter=reporter,
        ids_root=ids_root,
    )
    if reduced.state is None:
        raise ValueError(f"no row of {corpus.shown} can be used")
    return reduced


def reduce_each(
    corpus: Corpus,
    parts: Sequence[Sequence[Unit]],
    dimension: int,
    measure: Measure,
    *,
    title: str,
    reporter: Reporter,
    ids_root: str | None = None,
) -> list[Reduced]:
    """Accumulate a measure over each of several parts of a corpus, all in one pass.

    The state of a part without a usable row is None.

    Raises:
        ValueError: when a unit cannot be read.
    """
    trees: list[TreeReduction] = []
    rows: list[dict[str, Any]] = []
    places: list[tuple[int, int]] = []
    for part, units in enumerate(parts):
        ordered = sorted(units, key=lambda unit: unit.key)
        # The tree's shape, and so its rounding, depends on the number of units alone.
        size = max(1, min(MOST_UNITS_PER_GROUP, len(ordered) // GROUPS))
        starts = range(0, len(ordered), size)
        trees.append(TreeReduction(len(starts)))
        for leaf, start in enumerate(starts):
            group = ordered[start : start + size]
            places.append((part, leaf))
            rows.append(
                {"group": len(rows), "units": json.dumps([unit.to_json() for unit in group])}
            )
    # The method behind map_batches, which is about to take no max_retries any more.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches_internal(
        Accumulate(corpus, dimension, measure, ids_root),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        max_retries=_MOST_RETRIES,
    )
    used, rejected = [0] * len(parts), [0] * len(parts)
    norms = [Norms() for _ in parts]
    try:
        total = sum(unit.rows for units in parts for unit in units)
        with reporter.progress(title, total) as advance:
            for row in dataset.iter_rows():
                part, leaf = places[row["group"]]
                serialized = row["state"]
                state = measure.read(safetensors.torch.load(serialized)) if serialized else None
                trees[part].add(leaf, state)
                used[part] += row["rows"]
                rejected[part] += row["rejected"]
                if row["rows"]:
                    norms[part] = norms[part].merge(Norms.of_mapping(json.loads(row["norms"])))
                advance(row["rows"] + row["rejected"])
    except RayError as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise ValueError(str(cause)) from error
    results = [tree.result for tree in trees]
    return [Reduced(*found) for found in zip(results, used, rejected, norms, strict=True)]
