from itertools import pairwise

import pytest
import torch

from pipeline.align import Centroid, Oracle
from pipeline.align.base import NotFittedError
from tests.align.clouds import WIDTH, clouds

IMAGE, TEXT = clouds(200, 200)


def substitutes(share=0.5, directions=None):
    return Oracle(share, directions).fit(IMAGE, TEXT).transform_pairs(IMAGE, TEXT)


def test_the_whole_residual_gives_the_image_and_none_of_it_the_centroid_shift():
    torch.testing.assert_close(substitutes(1.0), IMAGE)
    torch.testing.assert_close(substitutes(1.0, WIDTH), IMAGE)
    centroid = Centroid().fit(IMAGE, TEXT).transform(TEXT)
    torch.testing.assert_close(substitutes(0.0), centroid, atol=1e-6, rtol=0)
    assert substitutes().dtype == torch.float32


def test_more_directions_leave_less_of_the_residual():
    left = [(IMAGE - substitutes(1.0, k)).square().sum(dim=1).mean() for k in range(1, WIDTH + 1)]
    assert all(more > less for more, less in pairwise(left))


def test_the_first_direction_is_the_residuals_dominant_one():
    image, text = IMAGE.double(), TEXT.double()
    residual = (image - image.mean(dim=0)) - (text - text.mean(dim=0))
    vector = torch.linalg.svd(residual).Vh[0]
    moved = text - text.mean(dim=0) + image.mean(dim=0)
    moved = moved + 0.7 * torch.outer(residual @ vector, vector)
    expected = torch.nn.functional.normalize(moved, dim=1).float()
    torch.testing.assert_close(substitutes(0.7, 1), expected)


def test_it_refuses_text_alone_and_what_are_no_pairs():
    oracle = Oracle().fit(IMAGE, TEXT)
    for refused in (oracle.transform, oracle.map):
        with pytest.raises(ValueError, match="oracle is a diagnostic method that uses pairs"):
            refused(TEXT)
    with pytest.raises(ValueError, match="pairs need equal shapes"):
        oracle.transform_pairs(IMAGE[:9], TEXT)
    with pytest.raises(ValueError, match=f"fitted on width {WIDTH}"):
        oracle.transform_pairs(IMAGE[:, 1:], TEXT[:, 1:])
    with pytest.raises(ValueError, match=r"directions is 13, but the embeddings have only 12"):
        substitutes(directions=13)
    with pytest.raises(NotFittedError):
        Oracle().transform_pairs(IMAGE, TEXT)
