"""The metrics of a method: against plain loops, closed forms, and invariance."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from pipeline.geometry import alignment_metrics as alignment_metrics_module
from pipeline.geometry import neighbours
from pipeline.geometry.alignment_metrics import (
    PairedMeasurement,
    alignment_metrics,
    local_mixing,
    mixing_reference,
    neighbourhood_overlap,
    ritz_anisotropies,
    similarity_correlation,
)
from pipeline.geometry.bootstrap import Resamples
from tests.geometry.paired import ROWS, WIDTH, normalised, pairs
from tests.geometry.samples import gaussian, rotation, unit_rows

K = 5


def entropy(share):
    if share in (0, 1):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def brute_neighbours(points, count):
    found = []
    for i in range(len(points)):
        others = sorted(
            (j for j in range(len(points)) if j != i), key=lambda j: -points[i] @ points[j]
        )
        found.append(set(others[:count]))
    return found


def test_alignment_metrics_against_plain_loops():
    image, text, substitute = pairs()
    found = alignment_metrics(image, text, substitute, K)
    x, y, z = image.numpy(), text.numpy(), substitute.numpy()
    second_moment = sum(np.outer(r, r) for r in x - z) / ROWS
    spectrum = np.linalg.eigvalsh(second_moment)
    similarity = z @ x.T
    ranks = np.array([(similarity[i] > similarity[i, i]).sum() for i in range(ROWS)])
    before, after = brute_neighbours(y, K), brute_neighbours(z, K)
    every = list(itertools.combinations(range(ROWS), 2))
    psi = np.corrcoef([y[i] @ y[j] for i, j in every], [z[i] @ z[j] for i, j in every])[0, 1]
    exact = {
        "delta_mu": np.linalg.norm(z.mean(0) - x.mean(0)),
        "a_r": spectrum[-1] / spectrum.mean(),
        "phi": np.mean([y[i] @ z[i] for i in range(ROWS)]),
        "omega": np.mean([len(before[i] & after[i]) / K for i in range(ROWS)]),
        "retrieval_r1": (ranks < 1).mean(),
        "retrieval_r5": (ranks < 5).mean(),
        "retrieval_r10": (ranks < 10).mean(),
        "paired_cosine": np.mean([x[i] @ z[i] for i in range(ROWS)]),
    }
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=1e-5)
    assert 0 < exact["retrieval_r1"] < exact["retrieval_r5"] < exact["retrieval_r10"]
    assert found["psi"] == pytest.approx(psi, abs=0.01)
    assert found.keys() == exact.keys() | {"psi", "m_z", "m_x"}


def test_local_mixing_against_plain_loops():
    image, text, substitute = pairs()
    union = np.concatenate((image, substitute))
    nearest = brute_neighbours(union, K)
    mixed = [entropy(sum(j < ROWS for j in near) / K) for near in nearest]
    # Under random labels the K others of a point hold a hypergeometric number of images.
    reference = sum(
        hypergeom.pmf(hits, 2 * ROWS, ROWS, K) * entropy(hits / K) for hits in range(K + 1)
    )
    m_z, m_x = local_mixing(image, substitute, K)
    assert m_z == pytest.approx(np.mean(mixed[ROWS:]) / reference)
    assert m_x == pytest.approx(np.mean(mixed[:ROWS]) / reference)
    found = alignment_metrics(image, text, substitute, K)
    assert (found["m_z"], found["m_x"]) == pytest.approx((m_z, m_x))


def test_two_samples_of_one_cloud_mix_and_separate_clouds_do_not():
    first, second = unit_rows(600, 6, 0), unit_rows(600, 6, 1)
    assert local_mixing(first, second) == pytest.approx((1, 1), abs=0.03)
    offset = torch.zeros(6).double()
    offset[0] = 5
    assert local_mixing(normalised(first + offset), normalised(second - offset)) == (0, 0)


def test_identity_keeps_everything():
    image, text, _ = pairs()
    found = alignment_metrics(image, text, text, K)
    assert found["phi"] == pytest.approx(1)
    assert found["psi"] == pytest.approx(1)
    assert found["omega"] == 1
    assert similarity_correlation(text, text) == pytest.approx(1)
    assert neighbourhood_overlap(text, text, K) == 1


def test_identical_clouds_are_retrieved_whole():
    image, text, _ = pairs()
    found = alignment_metrics(image, text, image, K)
    for name in ("retrieval_r1", "retrieval_r5", "retrieval_r10", "paired_cosine"):
        assert found[name] == pytest.approx(1)
    assert found["delta_mu"] == pytest.approx(0, abs=1e-7)


def test_metrics_ignore_the_order_of_pairs_and_a_common_rotation():
    image, text, substitute = pairs()
    found = alignment_metrics(image, text, substitute, K)
    turn = rotation(WIDTH, 0)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    moved = alignment_metrics(*(rows[order] @ turn for rows in (image, text, substitute)), K)
    # The pairs of Psi are drawn by position.
    assert moved["psi"] == pytest.approx(found["psi"], rel=0.06)
    exact = found.keys() - {"psi"}
    assert {n: moved[n] for n in exact} == pytest.approx({n: found[n] for n in exact}, rel=1e-4)


@pytest.mark.parametrize("rows", [30, 500])
def test_the_mixing_reference_is_the_mean_over_permutations(rows):
    values, reference = mixing_reference(rows, 20)
    assert values.tolist() == pytest.approx([entropy(hits / 20) for hits in range(21)])
    labels = torch.cat((torch.ones(rows), torch.zeros(rows)))
    generator = torch.Generator().manual_seed(0)
    drawn = [
        values[int(labels[torch.randperm(2 * rows, generator=generator)][:20].sum())]
        for _ in range(2000)
    ]
    assert reference == pytest.approx(float(torch.stack(drawn).mean()), rel=0.01)


def test_permuted_images_mix_as_random_labels_do():
    image, text, _ = pairs(1200)
    shuffled = image[torch.randperm(1200, generator=torch.Generator().manual_seed(0))]
    held_out, drawn = image[:600], shuffled[:600]
    unseen = torch.tensor([not bool((held_out == row).all(dim=1).any()) for row in drawn])
    drawn = drawn[unseen]
    found = alignment_metrics(held_out[: len(drawn)], text[: len(drawn)], drawn)
    assert (found["m_z"], found["m_x"]) == pytest.approx((1, 1), abs=0.03)
    assert found["retrieval_r10"] < 0.1
    assert abs(found["psi"]) < 0.05


def test_isotropic_residuals_have_no_anisotropy():
    image = unit_rows(20_000, 6, 0)
    opposite = unit_rows(20_000, 6, 1)
    measured = PairedMeasurement.of(image[:2000], opposite[:2000], K).measure(opposite[:2000])
    assert measured.metrics["a_r"] == pytest.approx(1, abs=0.12)
    assert float(measured.spectrum.sum()) == pytest.approx(1)
    assert (measured.spectrum.diff() <= 0).all()


# -- intervals -------------------------------------------------------------------------------------


def test_intervals_hold_the_metrics_and_change_nothing():
    image, text, substitute = pairs(400)
    measured = PairedMeasurement.of(image, text, K, resamples=200).measure(substitute)
    assert measured.metrics == alignment_metrics(image, text, substitute, K)
    assert measured.intervals.keys() == measured.metrics.keys()
    for name, (low, high) in measured.intervals.items():
        assert low < measured.metrics[name] < high, name


def test_intervals_of_means_are_as_wide_as_their_standard_error_says():
    image, text, substitute = pairs(400)
    measured = PairedMeasurement.of(image, text, K, resamples=1000).measure(substitute)
    for name, values in {
        "phi": (text * substitute).sum(dim=1),
        "paired_cosine": (image * substitute).sum(dim=1),
    }.items():
        low, high = measured.intervals[name]
        expected = 2 * 1.96 * float(values.std()) / 400**0.5
        assert high - low == pytest.approx(expected, rel=0.15)


def test_intervals_of_psi_are_as_wide_as_between_samples(monkeypatch):
    monkeypatch.setattr(alignment_metrics_module, "_SIMILARITY_PAIRS", 40_000)
    found, widths = [], []
    for seed in range(60):
        common = gaussian(300, 6, 2 * seed)
        text = normalised(common)
        substitute = normalised(common + 0.4 * gaussian(300, 6, 2 * seed + 1))
        shared = PairedMeasurement.of(text, text, K, seed=seed, resamples=100)
        measured = shared.measure(substitute)
        found.append(measured.metrics["psi"])
        low, high = measured.intervals["psi"]
        widths.append(high - low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(found, ddof=1), rel=0.3)


def test_a_small_centroid_shift_lies_within_its_interval():
    image = unit_rows(500, 30, 0)
    measured = PairedMeasurement.of(image, image, K, resamples=200).measure(unit_rows(500, 30, 1))
    low, high = measured.intervals["delta_mu"]
    assert low < measured.metrics["delta_mu"] < high


def test_anisotropy_of_resamples_follows_the_whole_eigenproblem():
    rows, width = 500, 100  # more dimensions than the 64 leading eigenvectors that are kept
    residual = gaussian(rows, width, 0) * torch.linspace(2, 0.3, width)
    vectors = torch.linalg.eigh(residual.T @ residual).eigenvectors
    resamples = Resamples.draw(rows, 20, torch.Generator().manual_seed(0))
    found = ritz_anisotropies(residual, vectors, resamples)
    for counts, value in zip(resamples.counts, found, strict=True):
        chosen = residual[torch.repeat_interleave(torch.arange(rows), counts.long())]
        spectrum = torch.linalg.eigvalsh(chosen.T @ chosen)
        assert float(value) == pytest.approx(float(spectrum[-1] / spectrum.mean()), rel=0.01)


def test_substitutes_that_are_the_images_leave_no_anisotropy():
    image, text, _ = pairs(100)
    measured = PairedMeasurement.of(image, text, K, resamples=10).measure(image)
    assert measured.metrics["a_r"] == pytest.approx(1)
    assert measured.intervals["a_r"] == pytest.approx([1, 1])
    assert measured.spectrum.tolist() == pytest.approx([1 / WIDTH] * WIDTH)


def test_all_methods_see_the_same_resamples():
    image, text, substitute = pairs()
    shared = PairedMeasurement.of(image, text, K, seed=3, resamples=20)
    again = PairedMeasurement.of(image, text, K, seed=3, resamples=20)
    assert shared.measure(substitute).intervals == again.measure(substitute).intervals
    other = PairedMeasurement.of(image, text, K, seed=4, resamples=20)
    assert shared.measure(substitute).intervals != other.measure(substitute).intervals


def test_past_the_exact_limit_metrics_stay_and_recall_is_told(monkeypatch):
    image, text, substitute = pairs(1500, 16)
    exact = PairedMeasurement.of(image, text).measure(substitute)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1499)
    shared = PairedMeasurement.of(image, text)
    found = shared.measure(substitute)
    assert (shared.exact, exact.recall) == (False, 1.0)
    assert 0.98 <= found.recall < 1
    assert found.metrics != exact.metrics
    assert found.metrics == pytest.approx(exact.metrics, rel=0.03)
