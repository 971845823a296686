from dataclasses import replace

import pytest
import torch

from pipeline.align import AnisoAlignInit, create_aligner
from pipeline.align.frames import FrozenFrame
from pipeline.align.settings import AnisoAlignSettings
from pipeline.geometry.frame import dominant_basis, joint_structure_matrix
from pipeline.geometry.gaussian_transport import block_bures_map, bures_map, displaced
from pipeline.geometry.gromov_transport import gromov_map
from pipeline.geometry.mixing import phase_stability
from pipeline.geometry.moments import Moments
from pipeline.geometry.shrinkage import covariance_of
from tests.align.clouds import RANK, SMALL, clouds, fitted

IMAGE, TEXT = clouds()
IMAGES, TEXTS = Moments.of(IMAGE), Moments.of(TEXT)
IDENTITY = torch.eye(RANK, dtype=torch.float64)


def frozen(mixing="random", images=None, seed=0, **settings):
    whole = AnisoAlignSettings(rank=RANK, **settings)
    return FrozenFrame.of(IMAGES, TEXTS, whole, seed, mixing=mixing, images=images)


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", "none"])
def test_the_frame_is_that_of_the_covariances_as_they_are_used(shrinkage):
    found = frozen("identity", shrinkage=shrinkage, ridge=0.01)
    image, text = (covariance_of(one, shrinkage) for one in (IMAGES, TEXTS))
    assert torch.equal(found.image_covariance, image)
    assert torch.equal(found.text_covariance, text)
    expected = dominant_basis(joint_structure_matrix(text, image, 0.01), RANK)
    torch.testing.assert_close(found.frame.basis, expected)


def test_each_start_has_its_map():
    found, settings = frozen(), AnisoAlignSettings(displacement=0.7, isometry_weight=2.0)
    basis = found.frame.basis
    source, target = (
        basis.T @ one @ basis for one in (found.text_covariance, found.image_covariance)
    )
    expected = {
        "radial": IDENTITY,
        "block": displaced(block_bures_map(source, target), 0.7),
        "subspace": displaced(bures_map(source, target), 0.7),
        "gromov": gromov_map(source, target, 0.7, 2.0),
    }
    for start, matrix in expected.items():
        torch.testing.assert_close(found.transport(start, settings), matrix)


def test_the_complement_gets_the_images_deviations():
    found = frozen(shrinkage="none")
    scaled = found.complement_scale() * found.frame.complement(TEXT.double())
    wanted = found.frame.complement_deviation(IMAGES.covariance)
    reached = Moments.of(scaled).covariance.diagonal().sqrt()
    torch.testing.assert_close(reached, wanted, atol=1e-6, rtol=0)


def test_the_complement_is_scaled_as_far_as_the_displacement_says():
    found = frozen()
    whole = found.complement_scale(1.0)
    assert torch.equal(found.complement_scale(0.0), torch.ones_like(whole))
    torch.testing.assert_close(found.complement_scale(0.3), 0.7 + 0.3 * whole)


def test_only_the_radial_start_scales_the_complement_the_whole_way():
    scales = {
        init: fitted("anisoalign-init", replace(SMALL, init=init)).tensors()["complement_scale"]
        for init in ("radial", "block", "subspace", "gromov")
    }
    assert torch.equal(scales["block"], scales["gromov"])
    assert torch.equal(scales["subspace"], scales["gromov"])
    torch.testing.assert_close(scales["gromov"], 0.6 + 0.4 * scales["radial"])


# -- the learned mixing ----------------------------------------------------------------------------


def test_a_learned_mixing_spans_the_same_subspace_with_stabler_phases():
    learned, drawn = frozen("learned", images=IMAGE).frame, frozen("random").frame
    torch.testing.assert_close(learned.basis.T @ learned.basis, IDENTITY)
    torch.testing.assert_close(learned.basis @ learned.basis.T, drawn.basis @ drawn.basis.T)
    reached, start = (
        phase_stability(frame.coordinates(IMAGE.double())) for frame in (learned, drawn)
    )
    assert reached > start + 0.05
    again = frozen("learned", images=IMAGE).frame
    assert torch.equal(again.basis, learned.basis)
    assert not torch.allclose(frozen("learned", images=IMAGE, seed=1).frame.basis, learned.basis)


@pytest.mark.parametrize("method", ["anisoalign", "anisoalign-radial", "bures-block"])
def test_a_learned_mixing_goes_through_the_settings_and_the_fit(method):
    settings = replace(SMALL, mixing="learned")
    aligner = create_aligner(method, settings, seed=2)
    assert aligner.settings.mixing == "learned"
    assert aligner.images_wanted > 0
    aligner.fit(IMAGE, TEXT)
    expected = frozen("learned", images=IMAGE, seed=2).frame.basis.float()
    torch.testing.assert_close(aligner.frame.basis, expected)
    assert torch.equal(
        create_aligner(method, settings, seed=2).fit(IMAGE, TEXT).transform(TEXT),
        aligner.transform(TEXT),
    )


@pytest.mark.parametrize("init", ["subspace", "gromov"])
def test_maps_of_the_whole_subspace_do_not_depend_on_the_mixing(init):
    rows = [
        AnisoAlignInit(RANK, init=init, mixing=mixing).fit(IMAGE, TEXT).transform(TEXT)
        for mixing in ("identity", "random", "learned")
    ]
    for other in rows[1:]:
        torch.testing.assert_close(other, rows[0], atol=1e-5, rtol=0)
