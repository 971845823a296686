import pytest
import torch

from pipeline.align import AnisoAlignInit, BuresBlock, BuresSubspace, Centroid
from pipeline.align.frames import complement_scale, frozen_frame
from pipeline.geometry.moments import Moments
from tests.align.clouds import RANK, clouds

IMAGE, TEXT = clouds()
IMAGES, TEXTS = Moments.of(IMAGE), Moments.of(TEXT)
BOTH = pytest.mark.parametrize("transport", [BuresBlock, BuresSubspace])


def within(aligner, covariance: torch.Tensor) -> torch.Tensor:
    """Return the covariance in the coordinates of U, shape (r, r)."""
    basis = aligner.frame.basis.double()
    return basis.T @ covariance @ basis


def dominant_covariance(aligner) -> torch.Tensor:
    """Return the covariance (r, r) of the texts' coordinates after the transport."""
    centred = TEXT - TEXTS.mean.float()
    return Moments.of(aligner.dominant(centred)).covariance


@BOTH
@pytest.mark.parametrize("mixing", ["random", "identity"])
def test_every_block_gets_the_images_covariance(transport, mixing):
    aligner = transport(RANK, mixing).fit(IMAGE, TEXT)
    reached, wanted = dominant_covariance(aligner), within(aligner, IMAGES.covariance)
    for block in range(RANK // 2):
        own = slice(2 * block, 2 * block + 2)
        torch.testing.assert_close(reached[own, own], wanted[own, own], atol=1e-6, rtol=1e-4)
    assert torch.allclose(reached, wanted, atol=1e-5) == (transport is BuresSubspace)


@BOTH
def test_without_displacement_the_text_is_only_recentred(transport):
    aligner = transport(RANK, displacement=0.0).fit(IMAGE, TEXT)
    expected = Centroid().fit(IMAGE, TEXT).map(TEXT)
    torch.testing.assert_close(aligner.map(TEXT), expected, atol=1e-6, rtol=0)


@BOTH
def test_displacement_is_the_straight_line_between(transport):
    near, half, far = (
        transport(RANK, displacement=t).fit(IMAGE, TEXT).moved(TEXT) for t in (0.0, 0.5, 1.0)
    )
    assert (far - near).norm(dim=1).mean() > 0.1
    torch.testing.assert_close(half, (near + far) / 2, atol=1e-6, rtol=0)


@BOTH
def test_frame_and_complement_are_those_of_anisoalign(transport):
    aligner = transport(RANK, seed=3).fit(IMAGE, TEXT)
    reference = AnisoAlignInit(RANK, "random", seed=3).fit(IMAGE, TEXT)
    assert torch.equal(aligner.frame.basis, reference.frame.basis)
    centred = TEXT - TEXTS.mean.float()
    rest = aligner.move(centred) - aligner.frame.embed(aligner.dominant(centred))
    mean = aligner.frame.complement(IMAGES.mean.float().unsqueeze(0))
    expected = reference.initial_parts(TEXT).complement
    torch.testing.assert_close(mean + rest, expected, atol=1e-6, rtol=0)


def test_the_complement_gets_the_images_deviations():
    frame = frozen_frame(IMAGES, TEXTS, rank=RANK, mixing="random", ridge=0.0, seed=0)
    scale = complement_scale(frame, IMAGES, TEXTS)
    scaled = scale * frame.complement(TEXT.double())
    torch.testing.assert_close(
        Moments.of(scaled).covariance.diagonal().sqrt(),
        frame.complement_deviation(IMAGES.covariance),
        atol=1e-6,
        rtol=0,
    )


@BOTH
def test_rank_auto_and_ranks_that_do_not_fit(transport):
    assert transport().fit(IMAGE, TEXT).frame.rank % 2 == 0
    with pytest.raises(ValueError, match=r"align\.rank is 14, but the embeddings have only 12"):
        transport(14).fit(IMAGE, TEXT)
    with pytest.raises(ValueError, match="displacement must lie between 0 and 1"):
        transport(4, displacement=2.0)
