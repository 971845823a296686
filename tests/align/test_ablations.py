from dataclasses import replace

import pytest
import torch

from pipeline.align import BuresBlock, BuresGromov, BuresSubspace
from pipeline.align.settings import RefinerSettings
from tests.align.clouds import RADIAL, SMALL, clouds, fitted

IMAGE, TEXT = clouds()
STARTS = pytest.mark.parametrize("settings", [SMALL, RADIAL], ids=["gromov", "radial"])


def substitutes(method, settings=SMALL):
    return fitted(method, settings).transform(TEXT)


@pytest.mark.parametrize(
    ("transport", "displacement"),
    [
        *((transport, t) for transport in (BuresBlock, BuresSubspace) for t in (0.0, 0.4, 1.0)),
        # Nearer to 1 the minimum is flat, and rounding in another basis shows.
        *((BuresGromov, t) for t in (0.0, 0.2, 0.4)),
    ],
)
@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", "none"])
def test_a_linear_start_without_refinement_is_its_transport(transport, shrinkage, displacement):
    settings = replace(
        SMALL, init=transport.start, shrinkage=shrinkage, displacement=displacement, ridge=0.01
    )
    rows = substitutes("anisoalign-init", settings)
    expected = substitutes(transport.method, settings)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mixing", ["identity", "random", "learned"])
def test_a_block_start_has_the_blocks_of_its_transport(mixing):
    settings = replace(SMALL, init="block", mixing=mixing)
    rows, expected = (substitutes(m, settings) for m in ("anisoalign-init", "bures-block"))
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


def test_every_start_is_another():
    starts = ("radial", "block", "subspace", "gromov")
    rows = [substitutes("anisoalign-init", replace(SMALL, init=init)) for init in starts]
    for place, one in enumerate(rows):
        for other in rows[:place]:
            assert (one - other).abs().max() > 0.02


@STARTS
def test_the_radial_form_is_anisoalign_from_the_radial_start(settings):
    rows = substitutes("anisoalign-radial", settings)
    assert torch.equal(rows, substitutes("anisoalign", replace(settings, init="radial")))
    assert fitted("anisoalign-radial", settings).settings.init == "radial"


@STARTS
def test_the_initialization_is_not_trained(settings):
    aligner = fitted("anisoalign-init", settings)
    assert aligner.history == {}
    assert not any(name.startswith(("prior.", "refiner.")) for name in aligner.tensors())


@STARTS
def test_refine_has_no_loss_and_so_stays_at_the_initialization(settings):
    rows = substitutes("anisoalign-refine", settings)
    assert torch.equal(rows, substitutes("anisoalign-init", settings))


@STARTS
def test_phase_is_least_at_the_start_of_training_and_so_stays_at_the_initialization(settings):
    aligner = fitted("anisoalign-phase", settings)
    assert torch.equal(aligner.transform(TEXT), substitutes("anisoalign-init", settings))
    assert aligner.history["refiner"] == [0.0] * settings.refiner.steps


@STARTS
def test_prior_moves_rows_from_the_initialization(settings):
    prior = substitutes("anisoalign-prior", settings)
    change = (prior - substitutes("anisoalign-init", settings)).abs().max()
    assert change > 1e-3
    assert not torch.equal(prior, substitutes("anisoalign", settings))


@pytest.mark.parametrize(
    ("method", "prior_weight", "phase_weight"),
    [
        ("anisoalign-refine", 0.0, 0.0),
        ("anisoalign-prior", 2.0, 0.0),
        ("anisoalign-phase", 0.0, 3.0),
        ("anisoalign", 2.0, 3.0),
    ],
)
def test_losses_left_out_have_no_weight_and_the_others_keep_theirs(
    method, prior_weight, phase_weight
):
    refiner = replace(SMALL.refiner, prior_weight=2.0, phase_weight=3.0)
    found = fitted(method, replace(SMALL, refiner=refiner)).settings.refiner
    assert isinstance(found, RefinerSettings)
    assert found == replace(refiner, prior_weight=prior_weight, phase_weight=phase_weight)
