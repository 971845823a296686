import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry.frame import (
    Frame,
    check_rank,
    choose_rank,
    dominant_basis,
    fixed_frame,
    joint_structure_matrix,
)
from pipeline.geometry.mixing import learned_mixing
from pipeline.geometry.moments import Moments
from tests.geometry.samples import covariance, gaussian, rotation

WIDTH, RANK = 10, 4


def test_joint_structure_is_the_sum_with_a_ridge():
    text, image = covariance(WIDTH, 0), covariance(WIDTH, 1)
    expected = text.numpy() + image.numpy() + 0.3 * np.eye(WIDTH)
    np.testing.assert_allclose(joint_structure_matrix(text, image, 0.3), expected)


def test_dominant_basis_holds_the_top_eigenvectors_in_order():
    structure = covariance(WIDTH, 0)
    basis = dominant_basis(structure, RANK)
    rayleigh = basis.T @ structure @ basis
    expected = np.linalg.eigvalsh(structure.numpy())[::-1][:RANK].copy()
    torch.testing.assert_close(rayleigh, torch.diag(torch.from_numpy(expected)))
    assert (basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("mixing", ["random", "identity"])
@given(seed=st.integers(0, 2**40), rank=st.integers(1, 5).map(lambda half: 2 * half))
def test_mixing_keeps_the_span_and_stays_orthogonal(mixing, seed, rank):
    structure = covariance(WIDTH, 3)
    plain, mixed = dominant_basis(structure, rank), fixed_frame(structure, rank, mixing, seed).basis
    torch.testing.assert_close(mixed.T @ mixed, torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(mixed @ mixed.T, plain @ plain.T)


def test_a_learned_mixing_is_that_of_the_images_in_the_plain_basis():
    structure, images = covariance(WIDTH, 3), gaussian(60, WIDTH, 1) + 1
    plain = dominant_basis(structure, RANK)
    found = fixed_frame(structure, RANK, "learned", 5, images.float()).basis
    expected = plain @ learned_mixing(images.float().double() @ plain, 5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found @ found.T, plain @ plain.T)


def test_coordinates_and_complement_take_embeddings_apart():
    frame = fixed_frame(covariance(WIDTH, 0), RANK, "random", 0)
    assert (frame.dimension, frame.rank, frame.blocks) == (WIDTH, RANK, RANK // 2)
    sample = gaussian(7, WIDTH, 5)
    inside, outside = frame.embed(frame.coordinates(sample)), frame.complement(sample)
    torch.testing.assert_close(inside + outside, sample)
    torch.testing.assert_close(outside @ frame.basis, torch.zeros(7, RANK).double())
    torch.testing.assert_close(frame.complement(outside), outside)
    torch.testing.assert_close(
        inside.square().sum(1) + outside.square().sum(1), sample.square().sum(1)
    )


def test_complement_deviation_is_that_of_the_samples():
    sample = gaussian(200, WIDTH, 1) @ covariance(WIDTH, 2) + 3
    frame = fixed_frame(covariance(WIDTH, 0), RANK, "random", 0)
    found = frame.complement_deviation(Moments.of(sample).covariance)
    np.testing.assert_allclose(found, frame.complement(sample).numpy().std(axis=0), rtol=1e-9)


def test_complement_of_the_whole_space_has_no_deviation():
    frame = fixed_frame(covariance(6, 0), 6, "random", 0)
    assert (frame.complement_deviation(covariance(6, 1)) < 1e-6).all()


def test_frame_converts():
    frame = fixed_frame(covariance(WIDTH, 0), RANK, "identity", 0)
    assert frame.to(torch.float32).basis.dtype == torch.float32
    assert isinstance(frame.to(), Frame)
    assert frame.to().basis.dtype == torch.float64


@given(
    width=st.integers(2, 14), images=st.integers(3, 40), decay=st.floats(0, 8), seed=st.integers(0)
)
def test_chosen_rank_can_be_used(width, images, decay, seed):
    spectrum = torch.exp(-decay * torch.linspace(0, 1, width, dtype=torch.float64))
    turn = rotation(width, seed % 2**60)
    rank = choose_rank(turn @ torch.diag(spectrum) @ turn.T, images)
    check_rank(rank, width, images)


def test_chosen_rank_holds_nearly_all_of_the_trace():
    def spectrum(*eigenvalues):
        turn = rotation(len(eigenvalues), 0)
        return turn @ torch.diag(torch.tensor(eigenvalues).double()) @ turn.T

    assert choose_rank(spectrum(*[1.0] * 16, *[0.0] * 24), 1000) == 16
    assert choose_rank(spectrum(*[1.0] * 15, *[0.0] * 25), 1000) == 16
    assert choose_rank(spectrum(*[1.0] * 16, *[0.005] * 24), 1000) == 16
    assert choose_rank(spectrum(*[1.0] * 16, *[0.01] * 24), 1000) == 24
    assert choose_rank(spectrum(1.0, *[0.0] * 9), 1000) == 2
    assert choose_rank(torch.eye(80).double(), 1000) == 64
    assert choose_rank(torch.eye(80).double(), 12) == 10


def test_no_rank_without_images_or_covariance():
    with pytest.raises(ValueError, match="at least 3 target embeddings"):
        choose_rank(torch.eye(6).double(), 2)
    with pytest.raises(ValueError, match="no covariance"):
        choose_rank(torch.zeros(6, 6).double(), 100)


@pytest.mark.parametrize(
    ("rank", "dimension", "images", "message"),
    [
        (3, 8, 100, "even number"),
        (0, 8, 100, "even number"),
        (-2, 8, 100, "even number"),
        (10, 9, 100, "choose an even rank up to 8"),
        (6, 8, 6, "only 6 target embeddings"),
        (6, 8, 2, "only 2 target embeddings"),
    ],
)
def test_unusable_ranks_say_why(rank, dimension, images, message):
    with pytest.raises(ValueError, match=message):
        check_rank(rank, dimension, images)


def test_usable_ranks_pass():
    check_rank(8, 8, 9)
    check_rank(2, 8, 3)
