import itertools

import pytest
import torch
from torch import nn

from pipeline.align.training import (
    Stage,
    StageState,
    Worker,
    initialised,
    seed_of,
    train_stage,
)

WIDTH, BLOCKS, ROWS, BATCH = 5, 3, 40, 11
SCALES = torch.tensor([0.1, 0.5, 1.0])
EMBEDDINGS = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def regression(network, draws):
    """A loss that uses all that is drawn."""
    goal = draws.embeddings[:, :BLOCKS] * draws.scale + 0.1 * draws.noise
    return (network(draws.embeddings) - goal).square().sum(dim=-1).mean()


def stage(steps=12, loss=regression, batch_size=BATCH, seed=0):
    network = initialised(lambda: nn.Linear(WIDTH, BLOCKS), seed, "small")
    return Stage("small", network, loss, BLOCKS, SCALES, steps, batch_size, 0.05, seed)


def assert_same(first, second):
    assert first.step == second.step
    assert first.losses == second.losses
    for name in ("network", "optimizer"):
        assert getattr(first, name).keys() == getattr(second, name).keys()
        for key, tensor in getattr(first, name).items():
            assert torch.equal(tensor, getattr(second, name)[key])


def test_seeds_depend_on_every_part_and_nothing_else():
    assert seed_of(1, "prior", 2) == seed_of(1, "prior", 2)
    seeds = {seed_of(1, "prior", 2), seed_of(1, "prior", 3), seed_of(2, "prior", 2), seed_of(1, 2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "prior", 0) == 592586378011656958


def test_initial_weights_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = initialised(lambda: nn.Linear(2, 2), 0, "x")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(initialised(lambda: nn.Linear(2, 2), 0, "x").weight, first.weight)
    assert not torch.equal(initialised(lambda: nn.Linear(2, 2), 0, "y").weight, first.weight)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_slices_of_the_draw_are_the_global_batch(workers):
    whole = stage().draw(EMBEDDINGS, 4, Worker())
    slices = [stage().draw(EMBEDDINGS, 4, Worker(rank, workers)) for rank in range(workers)]
    for index, part in enumerate(whole):
        assert part.shape[0] == BATCH
        assert torch.equal(torch.cat([one[index] for one in slices]), part)


def test_draws_change_with_step_and_seed_only():
    first = stage().draw(EMBEDDINGS, 0, Worker())
    again = stage().draw(EMBEDDINGS, 0, Worker())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (
        stage().draw(EMBEDDINGS, 1, Worker()),
        stage(seed=1).draw(EMBEDDINGS, 0, Worker()),
    ):
        assert not torch.equal(first.noise, other.noise)
    assert set(first.scale.flatten().tolist()) <= set(SCALES.tolist())


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_average_to_the_single_workers_loss(workers):
    alone = train_stage(stage(steps=1), EMBEDDINGS).losses[0]
    single = stage(steps=1)
    assert alone == regression(single.network, single.draw(EMBEDDINGS, 0, Worker())).item()
    losses = [
        train_stage(stage(steps=1), EMBEDDINGS, worker=Worker(rank, workers)).losses[0]
        for rank in range(workers)
    ]
    assert sum(losses) / workers == pytest.approx(alone, rel=1e-6)


def test_two_workers_in_step_reach_the_single_workers_weights():
    single = train_stage(stage(steps=5), EMBEDDINGS)
    replicas = [stage(steps=5) for _ in range(2)]
    states = [StageState(), StageState()]
    for step in range(5):
        # One step of both: gradients are averaged by hand, as DDP does between backward and step.
        gradients = []
        for rank, replica in enumerate(replicas):
            draws = replica.draw(EMBEDDINGS, step, Worker(rank, 2))
            share = draws.embeddings.shape[0] * 2 / BATCH
            network = initialised(lambda: nn.Linear(WIDTH, BLOCKS), 0, "small")
            if states[0].network:
                network.load_state_dict(states[0].network)
            gradients.append(
                torch.autograd.grad(regression(network, draws) * share, list(network.parameters()))
            )
        averaged = [torch.stack(pair).mean(dim=0) for pair in zip(*gradients, strict=True)]

        def loss(network, draws, averaged=averaged):
            return sum(
                (weight * gradient).sum()
                for weight, gradient in zip(network.parameters(), averaged, strict=True)
            )

        one = Stage("small", replicas[0].network, loss, BLOCKS, SCALES, 5, BATCH, 0.05, 0)
        reached = []
        train_stage(
            one, EMBEDDINGS, state=states[0], checkpoint_every=1, on_checkpoint=reached.append
        )
        states[0] = reached[0]
    for name, weight in single.network.items():
        torch.testing.assert_close(states[0].network[name], weight)


def test_losses_fall():
    losses = train_stage(stage(steps=60), EMBEDDINGS).losses
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_resuming_gives_the_unbroken_run():
    unbroken = train_stage(stage(), EMBEDDINGS)
    checkpoints = []
    end = train_stage(stage(), EMBEDDINGS, checkpoint_every=5, on_checkpoint=checkpoints.append)
    assert [checkpoint.step for checkpoint in checkpoints] == [5, 10, 12]
    assert_same(end, unbroken)
    assert_same(checkpoints[-1], unbroken)
    for checkpoint in checkpoints:
        stored = StageState.from_tensors(checkpoint.tensors())
        assert_same(stored, checkpoint)
        # Twice: a resumed run leaves its checkpoint as it was.
        for _ in range(2):
            assert_same(train_stage(stage(), EMBEDDINGS, state=stored), unbroken)


def test_no_steps_leave_the_initial_weights():
    small = stage(steps=0)
    end = train_stage(small, EMBEDDINGS)
    assert (end.step, end.losses, end.optimizer) == (0, [], {})
    for name, weight in small.network.state_dict().items():
        assert torch.equal(end.network[name], weight)


def test_the_rate_decays_to_zero():
    def constant_gradient(network, draws):
        return network.weight.sum() + 0 * draws.noise.sum()

    moves, states = [], []
    train_stage(
        stage(loss=constant_gradient), EMBEDDINGS, checkpoint_every=1, on_checkpoint=states.append
    )
    for before, after in itertools.pairwise(states):
        moves.append((after.network["weight"] - before.network["weight"]).abs().max().item())
    assert moves == sorted(moves, reverse=True)
    assert moves[-1] < 0.05 * 0.05


def test_progress_is_told():
    told = []
    end = train_stage(stage(steps=3), EMBEDDINGS, progress=lambda *event: told.append(event))
    assert told == [("small", step + 1, 3, loss) for step, loss in enumerate(end.losses)]


def test_a_diverging_loss_is_an_error():
    def broken(network, draws):
        return network(draws.embeddings).sum() * torch.nan

    with pytest.raises(ValueError, match="loss of the small is not finite at step 1"):
        train_stage(stage(loss=broken), EMBEDDINGS)
