"""Comparing methods: pairs are read strictly, split without leaking pairs, measured alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.align.baselines import Identity
from pipeline.align.registry import create_aligner
from pipeline.align.settings import METHODS
from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.pairs import Pairs, read_clouds, read_pairs, split_pairs, split_rows
from pipeline.geometry import neighbours
from pipeline.geometry.alignment_metrics import alignment_metrics
from pipeline.geometry.diagnostics import gap_metrics
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


def test_clouds_need_equal_widths_but_not_lengths(tmp_path: Path, pairs: Pairs):
    path = tmp_path / "clouds.npz"
    path.write_bytes(Pairs(pairs.image[:120], pairs.text).to_bytes())
    read = read_clouds(str(path))
    torch.testing.assert_close(read.image, pairs.image[:120])
    torch.testing.assert_close(read.text, pairs.text)
    with pytest.raises(ValueError, match="pairs need equal shapes"):
        read_pairs(str(path))
    np.savez(path, image=pairs.image.numpy(), text=pairs.text.numpy()[:, :5])
    with pytest.raises(ValueError, match=r"image has shape \(200, 12\), text \(200, 5\)"):
        read_clouds(str(path))


def test_fit_methods_fits_each_by_name(pairs: Pairs):
    told: list[str] = []
    methods = ("identity", "realign", "anisoalign")
    fitted = fit_methods(methods, pairs, SMALL, 4, lambda stage, *_: told.append(stage))
    assert list(fitted) == list(methods)
    assert set(told) == {"anisoalign prior", "anisoalign refiner"}
    whole = create_aligner("anisoalign", SMALL, 4).fit(pairs.image, pairs.text)
    assert torch.equal(fitted["anisoalign"].transform(pairs.text), whole.transform(pairs.text))
    with pytest.raises(ValueError, match="unknown method 'nope'"):
        fit_methods(["nope"], pairs)


def test_the_table_shows_what_was_measured(pairs: Pairs):
    fitting, held_out = halves(pairs, 0.5, 0)
    metrics = compare(fit_methods(("identity", "centroid"), fitting), held_out, seed=6).metrics
    assert (metrics["n"], metrics["seed"]) == (100, 6)
    rows = table_rows(metrics)
    assert [row[0] for row in rows] == ["Text (identity)", "Centroid"]
    assert all(len(row) == 1 + len(TABLE_METRICS) for row in rows)
    assert rows[0][1] == f"{metrics['methods']['identity']['delta_mu']:.3f}"


def test_every_method_has_a_name_for_people():
    assert set(TABLE_NAMES) == set(METHODS)


class Counting(Identity):
    """Counts how often it is asked."""

    asked = 0

    def transform(self, text: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return super().transform(text)


def test_one_pass_gives_metrics_intervals_and_curves(pairs: Pairs):
    fitting, held_out = halves(pairs, 0.5, 0)
    aligners = {
        "counted": Counting().fit(fitting.image, fitting.text),
        **fit_methods(("realign", "anisoalign"), fitting, SMALL),
    }
    told: list[tuple[int, int]] = []
    found = compare(aligners, held_out, 2, resamples=30, progress=lambda *step: told.append(step))
    assert aligners["counted"].asked == 1
    assert told == [(1, 3), (2, 3), (3, 3)]
    for name, aligner in aligners.items():
        alone = alignment_metrics(
            held_out.image, held_out.text, aligner.transform(held_out.text), seed=2
        )
        assert found.metrics["methods"][name] == pytest.approx(alone, rel=1e-5)
        intervals = found.metrics["intervals"][name]
        assert intervals.keys() == alone.keys()
        assert all(low <= high for low, high in intervals.values())
        assert intervals["delta_mu"][0] < alone["delta_mu"] < intervals["delta_mu"][1]
    assert found.metrics["gap"] == gap_metrics(held_out.image, held_out.text)
    assert found.metrics["neighbours"] == {"exact": True, "recall": 1.0}
    assert (found.metrics["n"], found.metrics["seed"], found.metrics["resamples"]) == (100, 2, 30)
    assert set(found.curves) == {
        "spectra",
        "subspace_overlap",
        "residual_spectrum",
        "clouds",
        "method_spectra",
        "training",
        "phases",
    }
    json.dumps([found.metrics, found.curves], allow_nan=False)


def test_all_methods_share_the_same_resamples(pairs: Pairs):
    alone = compare(fit_methods(("centroid",), pairs), pairs, resamples=20).metrics
    beside = compare(fit_methods(("identity", "centroid"), pairs), pairs, resamples=20).metrics
    assert beside["intervals"]["centroid"] == alone["intervals"]["centroid"]


def test_an_oracle_is_given_the_pairs(pairs: Pairs):
    fitting, held_out = halves(pairs, 0.5, 0)
    methods = fit_methods(("centroid", "oracle"), fitting)
    found = compare(methods, held_out, resamples=0).metrics
    assert found["intervals"] == {"centroid": {}, "oracle": {}}
    cosines = {name: values["paired_cosine"] for name, values in found["methods"].items()}
    assert cosines["oracle"] > cosines["centroid"] + 0.1


def test_rows_are_measured_as_unit_rows(pairs: Pairs):
    fitting, held_out = halves(pairs, 0.5, 0)
    found = compare(fit_methods(("centroid", "unicorn"), fitting), held_out, resamples=0).metrics
    # Unicorn leaves out the normalisation alone.
    assert found["methods"]["unicorn"] == pytest.approx(found["methods"]["centroid"], rel=1e-4)


def test_past_the_exact_limit_the_recall_is_reported(pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 100)
    found = compare(fit_methods(("identity",), pairs), pairs, resamples=0).metrics["neighbours"]
    assert not found["exact"]
    assert 0.98 <= found["recall"] <= 1
