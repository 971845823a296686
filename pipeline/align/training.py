"""The training loop of Stage I and Stage II, the same on one worker and on several.

Every step draws its global batch (rows, noise levels, noise) from a generator seeded by the run's
seed, the stage and the step, and each worker takes its slice. So the loss curve does not depend on
the number of workers, and a run resumed from a checkpoint draws what the unbroken run would have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pipeline.align.base import with_prefix

Network = TypeVar("Network", bound=nn.Module)

Progress = Callable[[str, int, int, float], None]
"""Called with the stage's name, the step, the number of steps and the loss."""


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed from a key, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Draws(NamedTuple):
    """One worker's part of a batch: embeddings (b, d), noise scales (b, 1), noise (b, m)."""

    embeddings: Tensor
    scale: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together; the default is the driver alone."""

    rank: int = 0
    count: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    """Makes a module whose backward pass averages gradients over the workers."""
    average: Callable[[Tensor], Tensor] = lambda value: value
    """Averages a scalar over the workers."""


@dataclass(frozen=True)
class Stage:
    """What to train: a network, its loss on draws, and how long."""

    name: str
    network: nn.Module
    loss: Callable[[nn.Module, Draws], Tensor]
    blocks: int
    scales: Tensor
    steps: int
    batch_size: int
    learning_rate: float
    seed: int

    def draw(self, embeddings: Tensor, step: int, worker: Worker) -> Draws:
        """Return the worker's slice of the global batch of a step, from embeddings (n, d)."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.name, step))
        rows = torch.randint(embeddings.shape[0], (self.batch_size,), generator=generator)
        levels = torch.randint(self.scales.shape[0], (self.batch_size,), generator=generator)
        noise = torch.randn(self.batch_size, self.blocks, generator=generator)
        mine = torch.arange(self.batch_size).tensor_split(worker.count)[worker.rank]
        device = self.scales.device
        return Draws(
            embeddings=embeddings[rows[mine]].to(device, torch.float32),
            scale=self.scales[levels[mine].to(device)].unsqueeze(1),
            noise=noise[mine].to(device),
        )


@dataclass
class StageState:
    """How far a stage has come: all that a checkpoint has to hold of it."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, the inverse of `from_tensors`."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "step": torch.tensor([self.step]),
            **{f"network.{name}": tensor for name, tensor in self.network.items()},
            **{f"optimizer.{name}": tensor for name, tensor in self.optimizer.items()},
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> StageState:
        """Rebuild a state from `tensors()`."""

        return cls(
            step=int(tensors["step"][0]),
            losses=tensors["losses"].tolist(),
            network=with_prefix(tensors, "network."),
            optimizer=with_prefix(tensors, "optimizer."),
        )


TrainingState = dict[str, StageState]
"""The state of every stage by name."""


def initialised(build: Callable[[], Network], seed: int, name: str) -> Network:
    """Build a network whose initial weights depend on the seed and the name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, name, "initial weights"))
        return build()


def _optimizer_tensors(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.detach().cpu().clone()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        # Adam updates these in place; the checkpoint must stay as it was.
        state.setdefault(int(index), {})[name] = tensor.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread while inside: the same bits on any machine, and no slower.

    For products too small to share out (512 x 256): on a busy machine, threads that wait for each
    other at every step cost ten times the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train_stage(
    stage: Stage,
    embeddings: Tensor,
    *,
    worker: Worker | None = None,
    state: StageState | None = None,
    checkpoint_every: int = 0,
    on_checkpoint: Callable[[StageState], None] | None = None,
    progress: Progress | None = None,
) -> StageState:
    """Train one stage on embeddings (n, d) from a state to its last step; returns the end state.

    Adam with a cosine decay to zero. `on_checkpoint` is called every `checkpoint_every` steps and
    at the end, on every worker.
    """
    worker = worker or Worker()
    state = state or StageState()
    network = stage.network
    if state.network:
        network.load_state_dict(state.network)
    if state.step >= stage.steps:
        return _snapshot(stage, state.step, state.losses, state.optimizer)
    optimizer = torch.optim.Adam(network.parameters(), lr=stage.learning_rate)
    if state.optimizer:
        _restore_optimizer(optimizer, state.optimizer)
    trained = worker.wrap(network)
    losses = list(state.losses)
    for step in range(state.step, stage.steps):
        rate = 0.5 * stage.learning_rate * (1 + math.cos(math.pi * step / stage.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        draws = stage.draw(embeddings, step, worker)
        # Slices may differ by a row; this weight makes the workers' average the batch's mean.
        share = draws.embeddings.shape[0] * worker.count / stage.batch_size
        loss = stage.loss(trained, draws) * share
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(worker.average(loss.detach())))
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"the loss of the {stage.name} is not finite at step {step + 1}; lower its "
                "learning_rate"
            )
        if progress is not None:
            progress(stage.name, step + 1, stage.steps, losses[-1])
        due = checkpoint_every and (step + 1) % checkpoint_every == 0
        if on_checkpoint is not None and (due or step + 1 == stage.steps):
            on_checkpoint(_snapshot(stage, step + 1, losses, _optimizer_tensors(optimizer)))
    return _snapshot(stage, stage.steps, losses, _optimizer_tensors(optimizer))


def _snapshot(
    stage: Stage, step: int, losses: list[float], optimizer: dict[str, Tensor]
) -> StageState:
    weights = {
        name: tensor.detach().cpu().clone() for name, tensor in stage.network.state_dict().items()
    }
    return StageState(step, list(losses), weights, optimizer)
