"""Merging in a tree: the same bits in any order, the same values as one block of all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.reductions import TreeReduction, reduce_corpus
from pipeline.cluster.session import ray_session
from pipeline.geometry.moments import Moments
from pipeline.report.console import Reporter
from pipeline.stages.accumulate import MeasureMoments
from pipeline.storage import Corpus, plan
from tests.cluster.samples import TEXTS, WIDTH, small_config, unit_cloud, write_embeddings


def moments_of_leaves(leaves: int) -> list[Moments | None]:
    """Return a state for each leaf; every fifth leaf had no rows."""
    generator = torch.Generator().manual_seed(leaves)
    return [
        None if leaf % 5 == 3 else Moments.of(torch.randn(1 + leaf % 4, 3, generator=generator))
        for leaf in range(leaves)
    ]


def reduced(states: list[Moments | None], order: list[int]) -> Moments | None:
    tree = TreeReduction(len(states))
    for index in order:
        tree.add(index, states[index])
    return tree.result


@given(st.integers(1, 40).flatmap(lambda leaves: st.permutations(range(leaves))))
def test_any_order_of_arrival_gives_the_same_bits(order: list[int]):
    states = moments_of_leaves(len(order))
    arrived, straight = reduced(states, order), reduced(states, sorted(order))
    assert arrived is not None
    assert straight is not None
    for name, tensor in straight.tensors().items():
        assert torch.equal(arrived.tensors()[name], tensor)


@given(st.integers(1, 40).flatmap(lambda leaves: st.permutations(range(leaves))))
def test_every_leaf_counts_once_and_siblings_stay_in_order(order: list[int]):
    class Word(str):
        def merge(self, other: str) -> Word:
            return Word(f"{self}{other}")

    letters = [Word(chr(ord("!") + index)) for index in range(len(order))]
    tree = TreeReduction(len(order))
    for index in order:
        tree.add(index, letters[index])
    assert tree.result == "".join(letters)


def test_leaves_without_rows():
    tree = TreeReduction(3)
    for leaf in (2, 0, 1):
        tree.add(leaf, None)
    assert tree.result is None


def test_a_missing_leaf_is_a_bug():
    tree = TreeReduction(3)
    tree.add(0, None)
    with pytest.raises(AssertionError, match="missing"):
        _ = tree.result


def test_few_states_are_held_at_once():
    tree = TreeReduction(64)
    for leaf in range(64):
        tree.add(leaf, None)
        assert len(tree._waiting) <= 7


@pytest.fixture
def corpus(clouds: Path) -> Corpus:
    return Corpus(path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding")


def test_a_corpus_reduces_to_the_moments_of_all_rows(local_ray: None, corpus: Corpus):
    """Twenty units, so three groups; the order in which units are given changes no bit."""
    planned = plan(corpus, 6)
    assert len(planned.units) == 20
    with ray_session(small_config(Path("unused"))):
        results = [
            reduce_corpus(
                corpus, units, WIDTH, MeasureMoments(), title="x", reporter=Reporter(quiet=True)
            )
            for units in (planned.units, planned.units[::-1])
        ]
    whole = Moments.of(torch.from_numpy(unit_cloud(TEXTS, WIDTH, -0.4, 1)))
    for found in results:
        assert (found.rows, found.rejected, found.state.count) == (TEXTS, 0, TEXTS)
        torch.testing.assert_close(found.state.mean, whole.mean, atol=1e-7, rtol=0)
        torch.testing.assert_close(found.state.covariance, whole.covariance, atol=1e-7, rtol=0)
    for name, tensor in results[0].state.tensors().items():
        assert torch.equal(results[1].state.tensors()[name], tensor)


def test_a_unit_without_good_rows_adds_nothing(local_ray: None, tmp_path: Path):
    values = unit_cloud(40, 4, 0.3, 5)
    values[10:20] = np.nan
    path = write_embeddings(tmp_path / "holes.parquet", "row", values)
    corpus = Corpus(path=str(path), modality="text", embedding_column="embedding")
    with ray_session(small_config(tmp_path)):
        found = reduce_corpus(
            corpus,
            plan(corpus, 10).units,
            4,
            MeasureMoments(),
            title="x",
            reporter=Reporter(quiet=True),
        )
    assert (found.rows, found.rejected) == (30, 10)
    good = torch.from_numpy(np.delete(values, np.s_[10:20], axis=0))
    torch.testing.assert_close(found.state.mean, Moments.of(good).mean, atol=1e-7, rtol=0)


def test_nothing_usable_is_an_error(local_ray: None, tmp_path: Path):
    path = write_embeddings(tmp_path / "zero.parquet", "row", np.zeros((4, 4), np.float32))
    corpus = Corpus(path=str(path), modality="text", embedding_column="embedding")
    with (
        ray_session(small_config(tmp_path)),
        pytest.raises(ValueError, match=r"no row of .*zero.parquet can be used"),
    ):
        reduce_corpus(
            corpus,
            plan(corpus, 10).units,
            4,
            MeasureMoments(),
            title="x",
            reporter=Reporter(quiet=True),
        )
