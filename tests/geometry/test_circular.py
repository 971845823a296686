import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry.circular import CircularSums, PhaseStructure, dependency_graph
from pipeline.geometry.polar import EPSILON, Polar, from_polar
from tests.geometry.samples import gaussian, polar_sample

BLOCKS = 6
SEEDS = st.integers(0, 2**32)


def sums(sample: Polar):
    return CircularSums.of(from_polar(*sample))


def structure(seed=0, blocks=BLOCKS, neighbours=2):
    return PhaseStructure.of(sums(polar_sample(200, blocks, seed)), neighbours)


def assert_same(first, second):
    assert first.count == second.count
    for name, tensor in first.tensors().items():
        torch.testing.assert_close(tensor, second.tensors()[name], rtol=1e-12, atol=1e-10)


@given(sizes=st.tuples(*[st.integers(0, 9)] * 3), seed=SEEDS)
def test_merge_is_associative_and_order_free(sizes, seed):
    whole = polar_sample(sum(sizes), 3, seed)
    radii, phases = (part.split(list(sizes)) for part in whole)
    first, second, third = (sums(Polar(*part)) for part in zip(radii, phases, strict=True))
    for merged in (
        first.merge(second).merge(third),
        first.merge(second.merge(third)),
        third.merge(first).merge(second),
    ):
        assert_same(merged, sums(whole))


def test_zero_is_neutral():
    some = sums(polar_sample(5, 3, 0))
    assert_same(CircularSums.zero(3).merge(some), some)
    assert_same(some.merge(CircularSums.zero(3)), some)
    with pytest.raises(ValueError, match="no target embeddings"):
        PhaseStructure.of(CircularSums.zero(3), 2)


def test_tensors_round_trip():
    some = sums(polar_sample(5, 3, 0))
    named = some.tensors()
    assert not any(tensor.is_complex() for tensor in named.values())
    again = CircularSums.from_tensors(named)
    assert again.count == 5
    for name in ("phasor", "pair", "energy"):
        assert torch.equal(getattr(again, name), getattr(some, name))


def test_structure_against_plain_loops():
    polar = polar_sample(200, BLOCKS, 0)
    radius, phase = polar.radius.numpy(), polar.phase.numpy()
    found = PhaseStructure.of(sums(polar), 2)
    energy = (radius**2).mean(axis=0)
    np.testing.assert_allclose(found.weight, energy / (energy.sum() + EPSILON))
    for k in range(BLOCKS):
        assert found.anchor[k] == pytest.approx(np.angle(np.exp(1j * phase[:, k]).mean()))
        for j in range(BLOCKS):
            moment = np.exp(1j * (phase[:, k] - phase[:, j])).mean()
            assert found.coupling[k, j] == pytest.approx(abs(moment))
            assert found.offset[k, j] == pytest.approx(np.angle(moment), abs=1e-12)
    torch.testing.assert_close(found.offset, -found.offset.T)
    assert found.weight.sum() == pytest.approx(1)


@given(blocks=st.integers(1, 7), neighbours=st.integers(1, 8), seed=SEEDS)
def test_graph_is_the_union_of_each_blocks_strongest(blocks, neighbours, seed):
    values = gaussian(blocks, blocks, seed).abs()
    coupling = values + values.T
    expected = set()
    for k in range(blocks):
        others = sorted((j for j in range(blocks) if j != k), key=lambda j: -coupling[k, j])
        expected |= {(min(k, j), max(k, j)) for j in others[:neighbours]}
    edges = [tuple(edge) for edge in dependency_graph(coupling, neighbours).tolist()]
    assert edges == sorted(expected)


@given(seed=SEEDS, blocks=st.integers(1, 6), neighbours=st.integers(1, 4))
def test_drift_is_the_gradient_of_the_potential(seed, blocks, neighbours):
    prior = structure(seed, blocks, neighbours)
    phase = (gaussian(4, blocks, seed + 9) * 3).requires_grad_()
    (gradient,) = torch.autograd.grad(prior.potential(phase).sum(), phase)
    torch.testing.assert_close(prior.drift(phase), gradient, rtol=1e-9, atol=1e-11)


def test_potential_and_drift_against_plain_loops():
    prior = structure()
    phase = gaussian(1, BLOCKS, 4)
    angles, anchor, weight = phase[0].tolist(), prior.anchor.tolist(), prior.weight.tolist()
    potential = sum(weight[k] * (1 - math.cos(angles[k] - anchor[k])) for k in range(BLOCKS))
    drift = [weight[k] * math.sin(angles[k] - anchor[k]) for k in range(BLOCKS)]
    for k, j in prior.edges.tolist():
        strength, offset = prior.coupling[k, j].item(), prior.offset[k, j].item()
        potential += strength * (1 - math.cos(angles[k] - angles[j] - offset))
        drift[k] += strength * math.sin(angles[k] - angles[j] - offset)
        drift[j] += strength * math.sin(angles[j] - angles[k] + offset)
    assert prior.potential(phase).item() == pytest.approx(potential)
    assert prior.drift(phase)[0].tolist() == pytest.approx(drift)


@given(seed=SEEDS, turns=st.lists(st.integers(-3, 3), min_size=BLOCKS, max_size=BLOCKS))
def test_potential_is_not_negative_and_periodic(seed, turns):
    prior = structure()
    phase = gaussian(3, BLOCKS, seed) * 3
    turned = phase + 2 * math.pi * torch.tensor(turns).double()
    assert (prior.potential(phase) >= 0).all()
    torch.testing.assert_close(prior.potential(turned), prior.potential(phase))
    torch.testing.assert_close(prior.drift(turned), prior.drift(phase), rtol=1e-9, atol=1e-11)


def test_a_block_at_the_origin_has_no_phase():
    found = CircularSums.of(torch.tensor([[0.0, 0.0, 0.0, 2.0]]))
    assert found.phasor.tolist() == [0, 1j]
    assert found.pair.tolist() == [[0, 0], [0, 1]]
    assert found.energy.tolist() == [0, 4]


def test_one_block_has_an_anchor_and_no_edge():
    prior = structure(blocks=1)
    assert prior.edges.shape == (0, 2)
    assert prior.potential(prior.anchor.unsqueeze(0)).item() == pytest.approx(0)


def test_structure_converts():
    single = structure().to(torch.float32)
    assert single.drift(torch.zeros(2, BLOCKS)).dtype == torch.float32
    assert single.edges.dtype == torch.int64
    assert single.blocks == BLOCKS
