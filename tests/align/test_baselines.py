import numpy as np
import pytest
import torch

from pipeline.align import BuresSubspace
from pipeline.align.baselines import Centroid, Identity, Moment, ReAlign, Unicorn
from pipeline.geometry.gaussian_transport import bures_map, whitening_colouring_map
from pipeline.geometry.moments import Moments
from tests.align.clouds import clouds

IMAGE, TEXT = clouds()
X, Y = IMAGE.double().numpy(), TEXT.double().numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def assert_rows(found, expected):
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_identity_is_the_text():
    assert_rows(Identity().fit(IMAGE, TEXT).transform(TEXT), Y)


def test_centroid_shifts_the_mean():
    expected = unit(Y - Y.mean(axis=0) + X.mean(axis=0))
    assert_rows(Centroid().fit(IMAGE, TEXT).transform(TEXT), expected)


def test_realign_anchors_scales_and_recentres():
    variance = [((cloud - cloud.mean(axis=0)) ** 2).sum(axis=1).mean() for cloud in (X, Y)]
    scale = np.sqrt(variance[0] / variance[1])
    mapped = unit(X.mean(axis=0) + scale * (Y - Y.mean(axis=0)))
    expected = unit(mapped - mapped.mean(axis=0) + X.mean(axis=0))
    assert_rows(ReAlign().fit(IMAGE, TEXT).transform(TEXT), expected)


def test_realign_applies_the_fits_own_mean_to_new_text():
    fresh = clouds(seed=5)[1][:9]
    aligner = ReAlign().fit(IMAGE, TEXT)
    scale = aligner.tensors()["scale"].item()
    new = fresh.double().numpy()
    offset = X.mean(axis=0) - unit(X.mean(axis=0) + scale * (Y - Y.mean(axis=0))).mean(axis=0)
    mapped = unit(X.mean(axis=0) + scale * (new - Y.mean(axis=0)))
    assert_rows(aligner.transform(fresh), unit(mapped + offset))


def test_realign_of_equal_texts():
    with pytest.raises(ValueError, match="all source embeddings are equal"):
        ReAlign().fit(IMAGE, torch.eye(12)[:1].repeat(5, 1))


def test_realign_matches_the_trace():
    moved = Moments.of(ReAlign().fit(IMAGE, TEXT).moved(TEXT))
    wanted = Moments.of(IMAGE)
    torch.testing.assert_close(torch.trace(moved.covariance), torch.trace(wanted.covariance))
    torch.testing.assert_close(moved.mean, wanted.mean, atol=1e-6, rtol=0)


def test_unicorn_is_the_centroid_shift_before_the_norm():
    rows = Unicorn().fit(IMAGE, TEXT).transform(TEXT)
    assert_rows(rows, Y - Y.mean(axis=0) + X.mean(axis=0))
    centroid = Centroid().fit(IMAGE, TEXT).transform(TEXT)
    torch.testing.assert_close(torch.nn.functional.normalize(rows, dim=1), centroid)


@pytest.mark.parametrize(
    ("map", "between"), [("bures", bures_map), ("whitening", whitening_colouring_map)]
)
def test_moment_gives_the_texts_the_images_moments(map, between):
    aligner = Moment(map).fit(IMAGE, TEXT)
    moved, wanted = Moments.of(aligner.moved(TEXT)), Moments.of(IMAGE)
    torch.testing.assert_close(moved.mean, wanted.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.covariance, wanted.covariance, atol=1e-6, rtol=1e-4)
    matrix = between(Moments.of(TEXT).covariance, wanted.covariance).numpy()
    assert_rows(aligner.transform(TEXT), unit(X.mean(axis=0) + (Y - Y.mean(axis=0)) @ matrix.T))


@pytest.mark.parametrize("map", ["bures", "whitening"])
def test_moment_with_fewer_texts_than_dimensions(map):
    few = TEXT[:5]
    rows = Moment(map).fit(IMAGE, few).transform(TEXT)
    assert torch.isfinite(rows).all()
    same = Moment(map).fit(IMAGE, few[:1].repeat(4, 1)).transform(TEXT)
    assert_rows(same, unit(np.repeat(X.mean(axis=0, keepdims=True), len(TEXT), axis=0)))


def test_moment_is_the_subspace_transport_of_full_rank():
    whole = BuresSubspace(rank=12, shrinkage="none", displacement=1.0).fit(IMAGE, TEXT)
    expected = Moment().fit(IMAGE, TEXT).transform(TEXT)
    torch.testing.assert_close(whole.map(TEXT), expected, atol=2e-6, rtol=0)
