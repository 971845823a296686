import numpy as np
import pytest
import torch

from pipeline.align.baselines import Centroid, Identity, ReAlign
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
    with pytest.raises(ValueError, match="all text embeddings are equal"):
        ReAlign().fit(IMAGE, torch.eye(12)[:1].repeat(5, 1))
