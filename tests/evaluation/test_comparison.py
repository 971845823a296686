"""Comparing methods: pairs are read strictly, split without leaking pairs, measured alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.align.registry import create_aligner
from pipeline.align.settings import METHODS
from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.pairs import Pairs, read_pairs, split_pairs, split_rows
from pipeline.report.methods import TABLE_METRICS, TABLE_NAMES, table_rows
from tests.align.clouds import SMALL, clouds


@pytest.fixture
def pairs() -> Pairs:
    image, text = clouds(200, 200)
    return Pairs(image, text)


def pair_of(pairs: Pairs, row: torch.Tensor) -> int:
    return int((pairs.image == row).all(dim=1).nonzero()[0])


def halves(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs]:
    return split_pairs(pairs, split_rows(pairs.image.shape[0], share, seed))


def test_a_split_loses_no_pair_and_repeats_none(pairs: Pairs):
    fitting, held_out = halves(pairs, 0.7, seed=3)
    images = [pair_of(pairs, row) for row in torch.cat((fitting.image, held_out.image))]
    assert sorted(images) == list(range(200))
    assert fitting.image.shape[0] == 140
    for row, source in enumerate(images[140:]):
        assert torch.equal(held_out.text[row], pairs.text[source])


def test_the_fitting_part_has_its_own_texts_but_no_pairs(pairs: Pairs):
    rows = split_rows(200, 0.5, seed=3)
    assert sorted(rows.image.tolist()) == sorted(rows.text.tolist())
    assert rows.to_mapping()["held_out"] == rows.held_out.tolist()
    fitting, _ = split_pairs(pairs, rows)
    sources = [pair_of(pairs, row) for row in fitting.image]
    own = pairs.text[sources]
    assert torch.equal(own.sort(dim=0).values, fitting.text.sort(dim=0).values)
    assert int((own == fitting.text).all(dim=1).sum()) < 10


def test_a_split_is_seeded(pairs: Pairs):
    first, again, other = (halves(pairs, 0.5, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.004, 0.9, 1.0])
def test_splits_that_leave_too_little(share: float):
    with pytest.raises(ValueError, match=f"--split {share} of 200 pairs leaves"):
        split_rows(200, share, seed=0)


def test_rows_are_normalised(tmp_path: Path, pairs: Pairs):
    path = tmp_path / "pairs.npz"
    np.savez(path, image=3 * pairs.image.numpy(), text=pairs.text.numpy().astype(np.float16), x=1)
    read = read_pairs(str(path))
    torch.testing.assert_close(read.image, pairs.image)
    torch.testing.assert_close(read.text.norm(dim=1), torch.ones(200))
    assert read.text.dtype == torch.float32


def test_fit_methods_fits_each_by_name(pairs: Pairs):
    told: list[str] = []
    methods = ("identity", "realign", "anisoalign")
    fitted = fit_methods(methods, pairs, SMALL, 4, lambda stage, *_: told.append(stage))
    assert list(fitted) == list(methods)
    assert set(told) == {"prior", "refiner"}
    whole = create_aligner("anisoalign", SMALL, 4).fit(pairs.image, pairs.text)
    assert torch.equal(fitted["anisoalign"].transform(pairs.text), whole.transform(pairs.text))
    with pytest.raises(ValueError, match="unknown method 'nope'"):
        fit_methods(["nope"], pairs)


def test_the_table_shows_what_was_measured(pairs: Pairs):
    fitting, held_out = halves(pairs, 0.5, 0)
    metrics = compare(fit_methods(("identity", "centroid"), fitting), held_out, seed=6)
    assert (metrics["n"], metrics["seed"]) == (100, 6)
    rows = table_rows(metrics)
    assert [row[0] for row in rows] == ["Text (identity)", "Centroid"]
    assert all(len(row) == 1 + len(TABLE_METRICS) for row in rows)
    assert rows[0][1] == f"{metrics['methods']['identity']['delta_mu']:.3f}"


def test_every_method_has_a_name_for_people():
    assert set(TABLE_NAMES) == set(METHODS)
