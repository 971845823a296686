"""The curves of a report: shares, ladders and densities, all of finite rounded floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.align.anisoalign import AnisoAlign
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.curves import (
    CloudView,
    gap_curves,
    phase_curves,
    phase_method,
    rounded,
    training_curves,
)
from pipeline.evaluation.pairs import Pairs
from pipeline.geometry.diagnostics import Gap
from pipeline.geometry.moments import Moments
from tests.align.clouds import BLOCKS, WIDTH, clouds, fitted


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs(*clouds(400, 400, seed=1))


@pytest.fixture(scope="module")
def aligner() -> AnisoAlign:
    found = fitted("anisoalign")
    assert isinstance(found, AnisoAlign)
    return found


def test_numbers_are_rounded_to_six_digits():
    assert rounded([1 / 3, 123456.789, 1.23456789e-20]) == [0.333333, 123457.0, 1.23457e-20]
    assert rounded(torch.tensor([2.0])) == [2.0]


def test_curves_of_the_gap(pairs: Pairs):
    gap = Gap.of(pairs.image, pairs.text)
    curves = gap_curves(gap)
    for name, cloud in (("image", pairs.image), ("text", pairs.text)):
        expected = np.linalg.eigvalsh(np.cov(cloud.numpy(), rowvar=False, ddof=0))[::-1]
        assert curves["spectra"][name] == pytest.approx(expected.tolist(), rel=1e-4)
    overlap = curves["subspace_overlap"]
    assert overlap["sizes"] == [1, 2, 3, 4, 5, 6]
    assert overlap["chance"] == pytest.approx([size / WIDTH for size in overlap["sizes"]], abs=1e-6)
    assert overlap["overlap"][1] == pytest.approx(gap.metrics()["o_2"], abs=1e-6)
    residual = curves["residual_spectrum"]
    assert len(residual) == WIDTH
    assert sum(residual) == pytest.approx(1, abs=1e-5)
    assert residual == sorted(residual, reverse=True)
    assert WIDTH * residual[0] == pytest.approx(gap.metrics()["a_r"], rel=1e-5)


def test_clouds_are_seen_along_the_gap_and_where_the_spreads_differ():
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([0.01, 0.01, 0.3, 0.01, 0.2, 0.01])
    text = torch.randn(500, 6, generator=generator) * spread
    image = torch.randn(500, 6, generator=generator) * 0.01
    image[:, 0] += 1  # the gap
    view = CloudView(Pairs(image, text))
    places = {name: np.array(view.of(rows)) for name, rows in (("image", image), ("text", text))}
    assert places["image"].shape == places["text"].shape == (200, 3)
    expected = [[-1, 0, 0], [0.01, 0.3, 0.2]]  # of the texts: where they stand, how they spread
    found = [places["text"].mean(axis=0), places["text"].std(axis=0)]
    assert found == pytest.approx(np.array(expected), abs=0.05)
    assert places["image"].mean(axis=0) == pytest.approx(np.zeros(3), abs=0.01)
    assert places["text"][:, 1] == pytest.approx(text[:200, 2].numpy(), abs=0.05)


def test_clouds_of_a_few_methods_are_drawn(pairs: Pairs):
    aligners = {name: fitted(name) for name in ("centroid", "realign")}
    clouds = compare(aligners, pairs, resamples=0).curves["clouds"]
    view = CloudView(pairs)
    assert clouds["text"] == view.of(pairs.text)
    assert list(clouds["substitutes"]) == ["realign"]
    expected = np.array(view.of(fitted("realign").transform(pairs.text)))
    assert np.array(clouds["substitutes"]["realign"]) == pytest.approx(expected, abs=1e-5)


def test_few_pairs_have_few_eigenvalues_and_a_ladder_is_sparse():
    image = torch.nn.functional.normalize(torch.randn(40, 400, generator=torch.Generator()), dim=1)
    curves = gap_curves(Gap.of(image, image.flip(0)))
    assert len(curves["spectra"]["text"]) == 39
    sizes = curves["subspace_overlap"]["sizes"]
    assert 10 <= len(sizes) <= 12
    assert (sizes[0], sizes[-1]) == (1, 39)  # 40 centred pairs span 39


def test_spectra_of_methods_are_those_of_their_residuals(pairs: Pairs, aligner: AnisoAlign):
    realign = fitted("realign")
    found = compare({"realign": realign, "anisoalign": aligner}, pairs, resamples=0)
    residual = (pairs.image - realign.transform(pairs.text)).double()
    moments = Moments.of(residual)
    second = torch.linalg.eigvalsh(residual.T @ residual / moments.count).flip(0)
    spectrum = found.curves["method_spectra"]["realign"]
    assert spectrum == pytest.approx((second / second.sum()).tolist(), rel=1e-4)
    a_r = found.metrics["methods"]["anisoalign"]["a_r"]
    assert WIDTH * found.curves["method_spectra"]["anisoalign"][0] == pytest.approx(a_r, rel=1e-5)
    expected = phase_curves(aligner, pairs, aligner.transform(pairs.text))
    assert found.curves["phases"] == expected


def test_training_curves_are_of_trained_methods_alone(aligner: AnisoAlign):
    aligners = {"full": aligner, "init": fitted("anisoalign-init"), "realign": fitted("realign")}
    curves = training_curves(aligners)
    assert list(curves) == ["full"]
    assert {name: len(losses) for name, losses in curves["full"].items()} == {
        "prior": 30,
        "refiner": 20,
    }
    assert curves["full"]["prior"] == pytest.approx(aligner.history["prior"], rel=1e-5)


def test_phases_are_of_the_whole_method_where_there_is_one(aligner: AnisoAlign):
    realign, initial = fitted("realign"), fitted("anisoalign-init")
    assert phase_method({"a": realign, "init": initial, "anisoalign": aligner}) == "anisoalign"
    assert phase_method({"a": realign, "init": initial, "other": aligner}) == "init"
    assert phase_method({"a": realign}) is None


def test_without_an_anisotropic_method_there_are_no_phases(pairs: Pairs):
    found = compare({"realign": fitted("realign")}, pairs, resamples=0)
    assert "phases" not in found.curves
    assert found.curves["training"] == {}


def test_phases_are_densities_in_the_blocks_of_most_energy(pairs: Pairs, aligner: AnisoAlign):
    substitute = aligner.transform(pairs.text)
    phases = phase_curves(aligner, pairs, substitute)
    edges = np.array(phases["edges"])
    assert edges == pytest.approx(np.linspace(-math.pi, math.pi, 25), abs=1e-5)
    weight = aligner.structure.weight
    assert phases["blocks"] == weight.argsort(descending=True).tolist()[:4]
    assert len(phases["blocks"]) == BLOCKS
    for name in ("target", "source", "substitute"):
        assert len(phases[name]) == BLOCKS
        for density in phases[name]:
            assert sum(density) * (2 * math.pi / 24) == pytest.approx(1, abs=1e-4)
    # The source as the aligner sees it is recentred; without refinement phases stay there.
    means = aligner.tensors()
    recentred = pairs.text - means["text_mean"] + means["image_mean"]
    own = aligner.polar(recentred).phase[:, phases["blocks"][0]].numpy()
    expected = np.histogram(own, np.linspace(-math.pi, math.pi, 25), density=True)[0]
    assert phases["source"][0] == pytest.approx(expected.tolist(), abs=1e-4)
    own = aligner.polar(pairs.image).phase[:, phases["blocks"][0]].numpy()
    expected = np.histogram(own, np.linspace(-math.pi, math.pi, 25), density=True)[0]
    assert phases["target"][0] == pytest.approx(expected.tolist(), abs=1e-4)
