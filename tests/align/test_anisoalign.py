from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from pipeline.align import AnisoAlign, AnisoAlignInit, create_aligner
from pipeline.align.prior import noise_scales
from pipeline.align.training import StageState, Worker
from pipeline.geometry.moments import Moments
from pipeline.geometry.polar import wrap
from tests.align.clouds import BLOCKS, RADIAL, RANK, SMALL, WIDTH, clouds, fitted

IMAGE, TEXT = clouds()
X, Y = IMAGE.double().numpy(), TEXT.double().numpy()


def before_training(settings=SMALL):
    """An aligner with frame and polar statistics, its networks untrained."""
    aligner = create_aligner("anisoalign", settings)
    aligner.fit_frame(Moments.of(IMAGE), Moments.of(TEXT))
    text = aligner.text_statistics(TEXT) if aligner.measures_text else None
    return aligner.fit_polar(aligner.image_statistics(IMAGE), text)


def plain_frame():
    """Top eigenvectors of S in numpy, each with its largest entry positive."""
    structure = sum(np.cov(cloud, rowvar=False, ddof=0) for cloud in (X, Y))
    basis = np.linalg.eigh(structure)[1][:, ::-1][:, :RANK]
    return basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(RANK)])


def plain_initialization(text, basis, tables):
    """Section 4.4a in float64: returns the coordinates in U and the V side."""
    mean_image, mean_text = X.mean(axis=0), Y.mean(axis=0)
    outside = np.eye(WIDTH) - basis @ basis.T
    coordinates = (text - mean_text + mean_image) @ basis
    first, second = coordinates[:, 0::2], coordinates[:, 1::2]
    radius, phase = np.hypot(first, second), np.arctan2(second, first)
    for k, (source, target) in enumerate(zip(*tables, strict=True)):
        radius[:, k] = np.interp(radius[:, k], source, target)
    moved = np.empty_like(coordinates)
    moved[:, 0::2], moved[:, 1::2] = radius * np.cos(phase), radius * np.sin(phase)
    deviations = (X @ outside).std(axis=0) / ((Y @ outside).std(axis=0) + 1e-8)
    return moved, outside @ mean_image + deviations * ((text - mean_text) @ outside)


@pytest.mark.parametrize("mixing", ["identity", "random"])
def test_radial_initialization_against_plain_numpy(mixing):
    aligner = fitted("anisoalign-init", replace(RADIAL, mixing=mixing))
    transport = aligner.radial
    tables = transport.text_quantiles.double().numpy(), transport.image_quantiles.double().numpy()
    basis = plain_frame() if mixing == "identity" else aligner.frame.basis.double().numpy()
    inside, outside = plain_initialization(Y, basis, tables)
    expected = inside @ basis.T + outside
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    error = np.abs(aligner.map(TEXT).numpy() - expected)
    # Where two text quantiles nearly meet, the transport is steep and magnifies float32 rounding.
    assert np.median(error) < 1e-6
    assert error.max() < 2e-4


def test_radial_transport_is_between_the_recentred_text_and_the_images():
    aligner = fitted("anisoalign-init", RADIAL)
    basis = aligner.frame.basis.double().numpy()
    recentred = Y - Y.mean(axis=0) + X.mean(axis=0)
    levels, slack = np.linspace(0, 1, min(513, len(X), len(Y))), 2 / len(X)
    for cloud, tables in (
        (recentred, aligner.radial.text_quantiles),
        (X, aligner.radial.image_quantiles),
    ):
        coordinates = cloud @ basis
        radius = np.hypot(coordinates[:, 0::2], coordinates[:, 1::2])
        low = np.quantile(radius, (levels - slack).clip(0, 1), axis=0).T
        high = np.quantile(radius, (levels + slack).clip(0, 1), axis=0).T
        # Ranks to a row or two, radii to the width of a bin.
        assert (tables.numpy() >= low * (1 - 2**-8) - 1e-5).all()
        assert (tables.numpy() <= high * (1 + 2**-8) + 1e-5).all()


def test_radial_initialization_gives_the_images_radii_and_complement_spread():
    aligner = fitted("anisoalign-init", RADIAL)
    parts = aligner.initial_parts(TEXT)
    image = aligner.frame.coordinates(IMAGE).unflatten(1, (-1, 2)).norm(dim=2)
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(
        parts.radius.quantile(levels, dim=0), image.quantile(levels, dim=0), rtol=0.02, atol=2e-3
    )
    complement = aligner.frame.complement(IMAGE)
    torch.testing.assert_close(
        parts.complement.mean(dim=0), complement.mean(dim=0), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        parts.complement.std(dim=0, correction=0), complement.std(dim=0, correction=0), rtol=1e-3,
        atol=1e-6,
    )  # fmt: skip


def test_structure_is_that_of_the_images():
    aligner = before_training()
    coordinates = X @ aligner.frame.basis.double().numpy()
    phase = np.arctan2(coordinates[:, 1::2], coordinates[:, 0::2])
    anchor = np.angle(np.exp(1j * phase).mean(axis=0))
    np.testing.assert_allclose(aligner.structure.anchor, anchor, atol=1e-5)
    assert aligner.structure.blocks == BLOCKS


def test_untrained_refiner_is_the_initialization_exactly():
    settings = replace(SMALL, refiner=replace(SMALL.refiner, steps=0))
    full, initial = fitted("anisoalign", settings), fitted("anisoalign-init", settings)
    assert torch.equal(full.map(TEXT), initial.map(TEXT))
    assert torch.equal(full.transform(TEXT), initial.transform(TEXT))


@pytest.mark.parametrize("init", ["gromov", "radial"])
@pytest.mark.parametrize("bounds", ["fixed", "adaptive"])
def test_refinement_stays_within_its_bounds_and_moves(bounds, init):
    refiner = replace(SMALL.refiner, bounds=bounds, log_radius_bound=0.03)
    aligner = fitted("anisoalign", replace(SMALL, init=init, refiner=refiner))
    limits = aligner.tensors()
    assert torch.equal(limits["phase_bound"], torch.full((BLOCKS,), 0.05)) == (bounds == "fixed")
    with torch.no_grad():
        initial, refined = aligner.initial_parts(TEXT), aligner.refined_parts(TEXT)
    turned = wrap(refined.phase - initial.phase).abs().amax(dim=0)
    assert turned.max() > 1e-4
    assert (turned <= limits["phase_bound"] + 1e-6).all()
    stretched = torch.log(refined.radius / initial.radius).abs().amax(dim=0)
    assert (stretched <= limits["log_radius_bound"] + 1e-5).all()
    shifted = (refined.complement - initial.complement).abs().max()
    assert shifted <= refiner.complement_bound + 1e-6


@settings_of_hypothesis(max_examples=20)
@given(seed=st.integers(0, 2**32), size=st.floats(1, 1000), adaptive=st.booleans())
def test_bounds_hold_for_any_weights(seed, size, adaptive):
    bounds = "adaptive" if adaptive else "fixed"
    refiner = replace(SMALL.refiner, bounds=bounds, phase_bound=0.4, harmonics=2)
    aligner = before_training(replace(SMALL, refiner=refiner))
    network = aligner._new_refiner()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
        initial = aligner.initial_parts(TEXT)
        refined = aligner.refine(initial, network(initial))
    limits = aligner.tensors()
    turned = wrap(refined.phase - initial.phase).abs()
    assert (turned <= limits["phase_bound"] + 2e-6).all()
    assert turned.max() > 0.5 * limits["phase_bound"].min()
    stretched = torch.log(refined.radius / initial.radius).abs()
    assert (stretched <= limits["log_radius_bound"] + 1e-5).all()
    shifted = (refined.complement - initial.complement).abs()
    assert (shifted <= refiner.complement_bound + 1e-6).all()


def test_bounds_are_the_same_from_merged_states():
    refiner = replace(SMALL.refiner, bounds="adaptive")
    whole, merged = (create_aligner("anisoalign", replace(SMALL, refiner=refiner)) for _ in "ab")
    for aligner in (whole, merged):
        aligner.fit_frame(Moments.of(IMAGE), Moments.of(TEXT))
    whole.fit_polar(whole.image_statistics(IMAGE))
    first, second = (merged.image_statistics(part) for part in IMAGE.split(300))
    merged.fit_polar(second.merge(first))
    for name in ("phase_bound", "log_radius_bound"):
        torch.testing.assert_close(merged.tensors()[name], whole.tensors()[name], rtol=0.03, atol=0)


def test_seed_changes_the_result():
    first, second = fitted("anisoalign", seed=0), fitted("anisoalign", seed=1)
    assert not torch.equal(first.transform(TEXT), second.transform(TEXT))


def test_refitting_forgets_the_first_fit():
    aligner = fitted("anisoalign", seed=0)
    other = clouds(seed=3)
    again = aligner.fit(*other).transform(TEXT)
    assert torch.equal(again, create_aligner("anisoalign", SMALL).fit(*other).transform(TEXT))


def test_losses_fall():
    wide = {"phase_bound": 0.3, "log_radius_bound": 0.2, "phase_weight": 1.0}
    settings = replace(
        SMALL,
        prior=replace(SMALL.prior, steps=150, batch_size=256),
        refiner=replace(SMALL.refiner, steps=100, batch_size=256, **wide),
    )
    aligner = fitted("anisoalign", settings)
    trained = {"prior": aligner._prior, "refiner": aligner._refiner}
    refiner_stage = aligner._refiner_stage()  # keeps the trained prior
    for stage, embeddings, share in (
        (refiner_stage, TEXT, 0.999),
        (before_training(settings)._prior_stage(), IMAGE, 0.8),
    ):
        assert len(aligner.history[stage.name]) == stage.steps
        # On the same large draw: from step to step the noise hides the refiner's progress.
        draws = replace(stage, batch_size=5000).draw(embeddings, 10_000, Worker())
        with torch.no_grad():
            after, before = (stage.loss(net, draws) for net in (trained[stage.name], stage.network))
        assert after < share * before


def test_the_phase_weight_keeps_phases_together():
    turned = []
    for weight in (0.0, 1000.0):
        aligner = fitted(
            "anisoalign", replace(SMALL, refiner=replace(SMALL.refiner, phase_weight=weight))
        )
        with torch.no_grad():
            change = aligner.refined_parts(TEXT).phase - aligner.initial_parts(TEXT).phase
        turned.append((1 - torch.cos(change[:, 0] - change[:, 1])).mean().item())
    assert turned[1] < 0.5 * turned[0]


def test_without_any_loss_nothing_is_refined():
    settings = replace(SMALL, refiner=replace(SMALL.refiner, prior_weight=0.0, phase_weight=0.0))
    assert torch.equal(
        fitted("anisoalign", settings).map(TEXT), fitted("anisoalign-init").map(TEXT)
    )


def test_training_the_refiner_leaves_the_prior_as_it_is():
    only_prior = replace(SMALL, refiner=replace(SMALL.refiner, steps=0))
    first, second = fitted("anisoalign", only_prior), fitted("anisoalign")
    for name, tensor in second.tensors().items():
        if name.startswith("prior."):
            assert torch.equal(tensor, first.tensors()[name])


def test_no_gradient_reaches_the_prior():
    aligner = fitted("anisoalign")
    stage = aligner._refiner_stage()
    stage.loss(stage.network, stage.draw(TEXT, 0, Worker())).backward()
    assert stage.network.exit.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in aligner._prior.parameters())
    trained_here = before_training()
    trained_here._prior_stage()  # as in an unbroken run, where Stage I has just used it
    trained_here._refiner_stage()
    assert not any(weight.requires_grad for weight in trained_here._prior.parameters())


def assert_same_states(first, second):
    assert first.keys() == second.keys()
    for name, state in first.items():
        assert state.losses == second[name].losses
        for key, weight in state.network.items():
            assert torch.equal(weight, second[name].network[key])


def test_resuming_in_either_stage_gives_the_unbroken_run():
    unbroken_aligner = before_training()
    unbroken = unbroken_aligner.train(IMAGE, TEXT)
    checkpoints = []
    before_training().train(IMAGE, TEXT, checkpoint_every=12, on_checkpoint=checkpoints.append)
    reached = [{name: state.step for name, state in one.items()} for one in checkpoints]
    assert reached == [
        {"prior": 12},
        {"prior": 24},
        {"prior": 30},
        {"prior": 30, "refiner": 12},
        {"prior": 30, "refiner": 20},
    ]
    for checkpoint in checkpoints:
        stored = {name: StageState.from_tensors(s.tensors()) for name, s in checkpoint.items()}
        resumed = before_training()
        assert_same_states(resumed.train(IMAGE, TEXT, state=stored), unbroken)
        assert torch.equal(resumed.map(TEXT), unbroken_aligner.map(TEXT))
        assert resumed.history == unbroken_aligner.history


@pytest.mark.parametrize("name", ["prior", "refiner"])
def test_workers_losses_average_to_the_single_workers(name):
    aligner = before_training(replace(SMALL, refiner=replace(SMALL.refiner, batch_size=63)))
    stage = aligner._prior_stage()
    embeddings = IMAGE
    if name == "refiner":
        stage, embeddings = aligner._refiner_stage(), TEXT
        torch.nn.init.normal_(stage.network.exit.weight, std=0.1)
    losses, gradients = [], []
    for workers in (1, 2, 3):
        for rank in range(workers):
            draws = stage.draw(embeddings, 0, Worker(rank, workers))
            share = draws.embeddings.shape[0] * workers / stage.batch_size
            stage.network.zero_grad()
            loss = stage.loss(stage.network, draws) * share
            loss.backward()
            losses.append(loss.item())
            gradients.append(stage.network.entry.weight.grad.clone())
    for part in (slice(1, 3), slice(3, 6)):
        assert np.mean(losses[part]) == pytest.approx(losses[0], rel=1e-5)
        averaged = torch.stack(gradients[part]).mean(dim=0)
        torch.testing.assert_close(averaged, gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [SMALL, RADIAL], ids=["gromov", "radial"])
def test_merged_steps_are_the_fit(settings):
    image_moments, text_moments = Moments.zero(WIDTH), Moments.zero(WIDTH)
    for part in IMAGE.split(130):
        image_moments = image_moments.merge(Moments.of(part))
    for part in TEXT.split(170):
        text_moments = text_moments.merge(Moments.of(part))
    aligner = create_aligner("anisoalign", settings).fit_frame(image_moments, text_moments)
    images = [aligner.image_statistics(part) for part in IMAGE.split(130)]
    texts = [aligner.text_statistics(part) for part in TEXT.split(170)]
    for states in (images, texts):
        while len(states) > 1:
            states.append(states.pop(0).merge(states.pop(0)))
    assert aligner.measures_text == (settings is RADIAL)
    aligner.fit_polar(images[0], texts[0] if aligner.measures_text else None).train(IMAGE, TEXT)
    aligner.calibrate(aligner.mean_of_mapped(TEXT))
    expected = fitted("anisoalign", settings).transform(TEXT)
    torch.testing.assert_close(aligner.transform(TEXT), expected, atol=5e-3, rtol=0)


def test_noise_ladder_reaches_the_stages():
    stage = before_training()._prior_stage()
    assert torch.equal(stage.scales, noise_scales(SMALL.noise))
    assert stage.blocks == BLOCKS


def test_rank_auto_and_the_smallest_rank():
    prior, refiner = SMALL.prior, SMALL.refiner
    automatic = AnisoAlign("auto", prior=prior, refiner=refiner).fit(IMAGE, TEXT)
    assert automatic.frame.rank % 2 == 0
    assert 2 <= automatic.frame.rank <= WIDTH
    # One block has no edge in the graph; a full rank leaves no complement.
    for rank in (2, WIDTH):
        for init in ("gromov", "radial"):
            aligner = AnisoAlign(rank, init=init, prior=prior, refiner=refiner).fit(IMAGE, TEXT)
            assert torch.isfinite(aligner.transform(TEXT)).all()


@pytest.mark.parametrize(
    ("rank", "images", "message"),
    [
        (WIDTH + 2, 500, f"only {WIDTH} dimensions"),
        (6, 6, "only 6 target embeddings"),
        ("auto", 2, "at least 3 target embeddings"),
    ],
)
def test_ranks_that_do_not_fit(rank, images, message):
    with pytest.raises(ValueError, match=message):
        AnisoAlignInit(rank).fit(IMAGE[:images], TEXT)


def test_odd_rank():
    with pytest.raises(ValueError, match="even number"):
        AnisoAlign(5)


def test_clouds_without_spread():
    row = torch.eye(WIDTH)[:1]
    with pytest.raises(ValueError, match="no covariance"):
        AnisoAlignInit().fit(row.repeat(20, 1), row.repeat(30, 1))


@pytest.mark.parametrize("init", ["radial", "block", "subspace", "gromov"])
@pytest.mark.parametrize("shrinkage", ["none", "ledoit-wolf"])
def test_texts_without_spread_or_fewer_than_the_rank(init, shrinkage):
    aligner = AnisoAlignInit(RANK, init=init, shrinkage=shrinkage)
    for few in (TEXT[:1].repeat(30, 1), TEXT[:4]):
        rows = aligner.fit(IMAGE, few).transform(TEXT)
        assert torch.isfinite(rows).all()


def test_parts_are_missing_before_their_step():
    aligner = create_aligner("anisoalign", SMALL)
    for name in ("frame", "structure", "radial"):
        with pytest.raises(ValueError, match="not fitted"):
            getattr(aligner, name)
    with pytest.raises(ValueError, match="not fitted"):
        _ = fitted("anisoalign-init").radial  # the start is not radial
    with pytest.raises(ValueError, match="not fitted"):
        before_training().transform(TEXT)
