import pytest
import torch

from pipeline.align import AnisoAlignInit, BuresBlock, BuresGromov, BuresSubspace, Centroid
from pipeline.geometry.moments import Moments
from pipeline.geometry.shrinkage import covariance_of
from tests.align.clouds import RANK, clouds

IMAGE, TEXT = clouds()
IMAGES, TEXTS = Moments.of(IMAGE), Moments.of(TEXT)
EVERY = pytest.mark.parametrize("transport", [BuresBlock, BuresSubspace, BuresGromov])
BURES = pytest.mark.parametrize("transport", [BuresBlock, BuresSubspace])


def dominant(aligner, centred: torch.Tensor) -> torch.Tensor:
    """Return A Q_U^T z, shape (n, r), of centred rows z (n, d)."""
    return aligner.frame.coordinates(centred) @ aligner._tensor("transport").T


def within(aligner, covariance: torch.Tensor) -> torch.Tensor:
    """Return the covariance in the coordinates of U, shape (r, r)."""
    basis = aligner.frame.basis.double()
    return basis.T @ covariance @ basis


def dominant_covariance(aligner) -> torch.Tensor:
    """Return the covariance (r, r) of the texts' coordinates after the transport."""
    centred = TEXT - TEXTS.mean.float()
    return Moments.of(dominant(aligner, centred)).covariance


def blocks_reach_the_images(aligner) -> None:
    reached, wanted = dominant_covariance(aligner), within(aligner, IMAGES.covariance)
    for block in range(RANK // 2):
        own = slice(2 * block, 2 * block + 2)
        torch.testing.assert_close(reached[own, own], wanted[own, own], atol=1e-6, rtol=1e-4)
    assert torch.allclose(reached, wanted, atol=1e-5) == isinstance(aligner, BuresSubspace)


@pytest.mark.parametrize("mixing", ["random", "identity", "learned"])
def test_every_block_gets_the_images_covariance(mixing):
    aligner = BuresBlock(rank=RANK, shrinkage="none", displacement=1.0, mixing=mixing)
    blocks_reach_the_images(aligner.fit(IMAGE, TEXT))


def test_the_whole_subspace_gets_the_images_covariance():
    aligner = BuresSubspace(rank=RANK, shrinkage="none", displacement=1.0)
    blocks_reach_the_images(aligner.fit(IMAGE, TEXT))


@EVERY
def test_without_displacement_the_text_is_only_recentred(transport):
    aligner = transport(rank=RANK, displacement=0.0).fit(IMAGE, TEXT)
    expected = Centroid().fit(IMAGE, TEXT).map(TEXT)
    torch.testing.assert_close(aligner.map(TEXT), expected, atol=1e-6, rtol=0)


@BURES
def test_displacement_is_the_straight_line_between(transport):
    near, half, far = (
        transport(rank=RANK, displacement=t).fit(IMAGE, TEXT).moved(TEXT) for t in (0.0, 0.5, 1.0)
    )
    assert (far - near).norm(dim=1).mean() > 0.1
    torch.testing.assert_close(half, (near + far) / 2, atol=1e-6, rtol=0)


def test_gromov_without_an_isometry_weight_is_the_subspace_transport():
    plain = BuresSubspace(rank=RANK).fit(IMAGE, TEXT)
    free, bound = (BuresGromov(rank=RANK, isometry_weight=w).fit(IMAGE, TEXT) for w in (0.0, 10.0))
    torch.testing.assert_close(free.transform(TEXT), plain.transform(TEXT), atol=1e-6, rtol=0)
    assert (bound.transform(TEXT) - plain.transform(TEXT)).abs().max() > 0.05


def test_gromov_keeps_inner_products_of_texts():
    centred = TEXT - TEXTS.mean.float()
    changes = []
    for weight in (0.0, 10.0, 1000.0):
        aligner = BuresGromov(rank=RANK, isometry_weight=weight).fit(IMAGE, TEXT)
        before, after = aligner.frame.coordinates(centred), dominant(aligner, centred)
        change = (after @ after.T - before @ before.T).square().mean().sqrt()
        changes.append(float(change / (before @ before.T).square().mean().sqrt()))
    assert changes == sorted(changes, reverse=True)
    assert changes[2] < 0.02 < 0.1 < changes[0]


@EVERY
def test_frame_and_complement_are_those_of_anisoalign(transport):
    aligner = transport(rank=RANK, seed=3).fit(IMAGE, TEXT)
    mixing = "random" if "mixing" in transport.used else "identity"
    reference = AnisoAlignInit(RANK, mixing=mixing, seed=3).fit(IMAGE, TEXT)
    assert torch.equal(aligner.frame.basis, reference.frame.basis)
    centred = TEXT - TEXTS.mean.float()
    rest = aligner.move(centred) - aligner.frame.embed(dominant(aligner, centred))
    mean = aligner.frame.complement(IMAGES.mean.float().unsqueeze(0))
    expected = reference.initial_parts(TEXT).complement
    torch.testing.assert_close(mean + rest, expected, atol=1e-6, rtol=0)


@BURES
def test_shrunk_covariances_are_those_transported(transport):
    few = IMAGE[:30], TEXT[:9]
    aligner = transport(rank=RANK, displacement=1.0).fit(*few)
    source, target = (
        within(aligner, covariance_of(Moments.of(rows), "ledoit-wolf")) for rows in few[::-1]
    )
    transport_matrix = aligner.tensors()["transport"].double()
    reached = transport_matrix @ source @ transport_matrix.T
    for block in range(RANK // 2):
        own = slice(2 * block, 2 * block + 2)
        torch.testing.assert_close(reached[own, own], target[own, own], atol=1e-5, rtol=1e-4)
    plain = transport(rank=RANK, displacement=1.0, shrinkage="none").fit(*few)
    assert not torch.allclose(plain.transform(TEXT), aligner.transform(TEXT), atol=1e-2)


@EVERY
def test_settings_are_taken_by_name_and_only_those_used(transport):
    for name in ("init", "prior", "noise", "rnk"):
        with pytest.raises(TypeError, match=f"{transport.method} does not use {name}"):
            transport(**{name: "gromov"})
    unused = {"mixing", "isometry_weight"} - set(transport.used)
    for name in unused:
        with pytest.raises(TypeError, match=f"does not use {name}"):
            transport(rank=RANK, **{name: 0})
    with pytest.raises(TypeError):
        transport(RANK)
    assert set(transport(rank=RANK).configuration()) == {"method", "seed", *transport.used}


@EVERY
def test_rank_auto_and_ranks_that_do_not_fit(transport):
    assert transport().fit(IMAGE, TEXT).frame.rank % 2 == 0
    with pytest.raises(ValueError, match=r"align\.rank is 14, but the embeddings have only 12"):
        transport(rank=14).fit(IMAGE, TEXT)
    with pytest.raises(ValueError, match="displacement must lie between 0 and 1"):
        transport(rank=4, displacement=2.0)
