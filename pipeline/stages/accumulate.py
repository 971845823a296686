"""Accumulating: a group of units in, one merged partial state out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from torch import Tensor

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import Aligner, with_prefix
from pipeline.align.polar_statistics import PolarStatistics
from pipeline.geometry.drift import RadialBins, RadialCounts, TextStatistics
from pipeline.geometry.moments import MeanSum, Moments
from pipeline.schema import REJECT
from pipeline.stages.tensors import tensor_of
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import row_hashes
from pipeline.storage.id_hashes import looks_at_texts, write_id_hashes
from pipeline.storage.norms import Norms
from pipeline.storage.reading import read_unit
from pipeline.storage.shards import embeddings_of


class State(Protocol):
    """A mergeable partial state."""

    def merge(self, other: Self) -> Self:
        """Return the state of both parts."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors."""
        ...


def read_embeddings(corpus: Corpus, unit: Unit, dimension: int) -> Tensor:
    """Return the good embeddings (n, d) of a unit, float32, in row order; not to be changed."""
    return _good_embeddings(read_unit(corpus, unit, dimension=dimension))


def _good_embeddings(table: pa.Table) -> Tensor:
    if table.column(REJECT).null_count < table.num_rows:
        table = table.filter(pc.is_null(table.column(REJECT)))
    return tensor_of(embeddings_of(table))


class Measure(ABC):
    """What to accumulate over embeddings."""

    @abstractmethod
    def of(self, embeddings: Tensor) -> Any:
        """Return the state of one block of embeddings (n, d)."""

    @abstractmethod
    def read(self, tensors: dict[str, Tensor]) -> Any:
        """Rebuild a state from its tensors."""


@dataclass(frozen=True)
class MeasureMoments(Measure):
    """Count, mean and covariance: the first pass."""

    def of(self, embeddings: Tensor) -> Moments:
        """Return the moments of embeddings (n, d)."""
        return Moments.of(embeddings)

    def read(self, tensors: dict[str, Tensor]) -> Moments:
        """Rebuild moments."""
        return Moments.from_tensors(tensors)


@dataclass(frozen=True)
class MeasurePolar(Measure):
    """Phases and radii in the frozen frame: the second pass."""

    aligner: AnisoAlign
    side: str

    def of(self, embeddings: Tensor) -> PolarStatistics:
        """Return the polar statistics of embeddings (n, d) of the side."""
        if self.side == "image":
            return self.aligner.image_statistics(embeddings)
        return self.aligner.text_statistics(embeddings)

    def read(self, tensors: dict[str, Tensor]) -> PolarStatistics:
        """Rebuild polar statistics."""
        return PolarStatistics.from_tensors(tensors)


@dataclass(frozen=True)
class MeasureMapped(Measure):
    """Sum and count of mapped text embeddings: what mu-hat is made of."""

    aligner: Aligner

    def of(self, embeddings: Tensor) -> MeanSum:
        """Return the state of the mapped embeddings (n, d)."""
        return self.aligner.mean_of_mapped(embeddings)

    def read(self, tensors: dict[str, Tensor]) -> MeanSum:
        """Rebuild the state."""
        return MeanSum.from_tensors(tensors)


@dataclass(frozen=True)
class MeasureText(Measure):
    """What drift is measured by: moments, and radii where bins are given."""

    bins: RadialBins | None

    def of(self, embeddings: Tensor) -> TextStatistics:
        """Return the statistics of embeddings (n, d)."""
        return TextStatistics.of(embeddings, self.bins)

    def read(self, tensors: dict[str, Tensor]) -> TextStatistics:
        """Rebuild statistics."""
        return TextStatistics.from_tensors(tensors)


@dataclass(frozen=True)
class MeasureRadii(Measure):
    """Radii of the text in fixed bins."""

    bins: RadialBins

    def of(self, embeddings: Tensor) -> RadialCounts:
        """Return the counts of embeddings (n, d)."""
        return self.bins.count(embeddings)

    def read(self, tensors: dict[str, Tensor]) -> RadialCounts:
        """Rebuild counts."""
        return RadialCounts.from_tensors(tensors)


@dataclass(frozen=True)
class StatesByName:
    """The states of several measures."""

    states: dict[str, Any]

    def merge(self, other: StatesByName) -> StatesByName:
        """Return the states of both parts."""
        merged = {name: state.merge(other.states[name]) for name, state in self.states.items()}
        return StatesByName(merged)

    def tensors(self) -> dict[str, Tensor]:
        """Return the states as named tensors, `measure.tensor`."""
        return {
            f"{name}.{key}": tensor
            for name, state in self.states.items()
            for key, tensor in state.tensors().items()
        }


@dataclass(frozen=True)
class MeasureTogether(Measure):
    """Several measures in one pass, by name."""

    measures: dict[str, Measure]

    def of(self, embeddings: Tensor) -> StatesByName:
        """Return the states of embeddings (n, d)."""
        return StatesByName({name: one.of(embeddings) for name, one in self.measures.items()})

    def read(self, tensors: dict[str, Tensor]) -> StatesByName:
        """Rebuild the states."""
        return StatesByName(
            {
                name: one.read(with_prefix(tensors, f"{name}."))
                for name, one in self.measures.items()
            }
        )


@dataclass(frozen=True)
class Accumulate:
    """Stage: a row `group`, `units` (a JSON list) becomes `group`, `state`, `rows`, `rejected`.

    `norms` (JSON) are those that the embeddings were given with.
    With `ids_root`, a dataset's folder, the hashes of each unit's ids are kept there on the way,
    since the dataset's own flow would have to read all units again for them.
    """

    corpus: Corpus
    dimension: int
    measure: Measure
    ids_root: str | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the merged state of the group's units, as safetensors bytes."""
        assert batch.num_rows == 1, "one group is one block"
        torch.set_num_threads(1)  # a task has one CPU, whatever OMP_NUM_THREADS says of the machine
        units = [Unit.from_json(unit) for unit in json.loads(batch.column("units")[0].as_py())]
        merged: Any = None
        rows = 0
        norms = Norms()
        for unit in units:
            table = read_unit(self.corpus, unit, dimension=self.dimension, norms=norms)
            if self.ids_root is not None:
                hashes = row_hashes(table, texts=looks_at_texts(self.corpus))
                write_id_hashes(self.ids_root, self.corpus, unit, hashes)
            embeddings = _good_embeddings(table)
            rows += embeddings.shape[0]
            if embeddings.shape[0]:
                state = self.measure.of(embeddings)
                merged = state if merged is None else merged.merge(state)
        serialized = b"" if merged is None else safetensors.torch.save(merged.tensors())
        return pa.table(
            {
                "group": batch.column("group"),
                "state": pa.array([serialized], type=pa.large_binary()),
                "rows": [rows],
                "rejected": [sum(unit.rows for unit in units) - rows],
                "norms": [json.dumps(norms.to_mapping())],
            }
        )
