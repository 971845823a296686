"""Stage I and Stage II under Ray Train, or by the same loop in the driver."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import with_prefix
from pipeline.align.registry import load_aligner
from pipeline.align.training import StageState, TrainingState, Worker, seed_of
from pipeline.cluster.errors import user_error
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.stages.accumulate import read_embeddings
from pipeline.storage import locations
from pipeline.storage.artifacts import read_artifact, write_artifact
from pipeline.storage.corpus import Corpus, Unit


@dataclass(frozen=True)
class TrainingRows:
    """Where a side's training rows come from: units in a fixed order, rows capped."""

    corpus: Corpus
    units: tuple[Unit, ...]
    dimension: int
    max_rows: int

    @classmethod
    def choose(
        cls, corpus: Corpus, units: Sequence[Unit], dimension: int, max_rows: int, seed: int
    ) -> TrainingRows:
        """Choose units by a seeded order of their keys until there are enough rows."""
        chosen: list[Unit] = []
        rows = 0
        for unit in sorted(units, key=lambda unit: (seed_of(seed, unit.key), unit.key)):
            if rows >= max_rows:
                break
            chosen.append(unit)
            rows += unit.rows
        return cls(corpus, tuple(chosen), dimension, max_rows)

    def load(self) -> Tensor:
        """Return the rows, shape (n, d), float32, n <= max_rows."""
        blocks = [read_embeddings(self.corpus, unit, self.dimension) for unit in self.units]
        return torch.cat(blocks)[: self.max_rows]


def save_state(url: str, state: TrainingState) -> None:
    """Write a training state as an artifact (JSON and safetensors)."""
    tensors = {
        f"{name}.{key}": tensor
        for name, stage in state.items()
        for key, tensor in stage.tensors().items()
    }
    write_artifact(url, {"stages": sorted(state)}, tensors)


def load_state(url: str) -> TrainingState:
    """Read a training state; raises ValueError when it is missing or damaged."""
    configuration, tensors = read_artifact(url)
    return {
        name: StageState.from_tensors(with_prefix(tensors, f"{name}."))
        for name in configuration["stages"]
    }


def train_aligner(
    config: RunConfig,
    aligner: AnisoAlign,
    image: TrainingRows,
    text: TrainingRows,
    folder: str,
    reporter: Reporter,
) -> None:
    """Train an aligner whose frame and statistics are fixed, resuming from checkpoints in `folder`.

    `train.workers: 0` trains in this process; otherwise a Ray Train TorchTrainer runs the same
    loop on that many workers.
    """
    if config.train.workers == 0:
        state = _train_here(config, aligner, image, text, folder, reporter)
    else:
        state = _train_on_workers(config, aligner, image, text, folder, reporter)
    aligner.take_trained(state)


def _train_here(
    config: RunConfig,
    aligner: AnisoAlign,
    image: TrainingRows,
    text: TrainingRows,
    folder: str,
    reporter: Reporter,
) -> TrainingState:
    checkpoint = locations.join(folder, "checkpoint")
    started: TrainingState | None = None
    if locations.exists(locations.join(checkpoint, "config.json")):
        try:
            started = load_state(checkpoint)
        except ValueError:  # killed while it was written
            reporter.say("the last checkpoint is only half there; training from the start")
    if torch.cuda.is_available():
        aligner.to("cuda")
    with reporter.training() as progress:
        state = aligner.train(
            image.load(),
            text.load(),
            state=started,
            checkpoint_every=config.train.checkpoint_every,
            on_checkpoint=lambda reached: save_state(checkpoint, reached),
            progress=progress,
        )
    aligner.to("cpu")
    return state


def _train_on_workers(
    config: RunConfig,
    aligner: AnisoAlign,
    image: TrainingRows,
    text: TrainingRows,
    folder: str,
    reporter: Reporter,
) -> TrainingState:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import RayTrainError

    # Workers may be on other machines: what they start from goes through storage.
    initial = locations.join(folder, "initial")
    aligner.save(initial, provenance={})
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "aligner": initial,
            "image": image,
            "text": text,
            "checkpoint_every": config.train.checkpoint_every,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.train.workers,
            use_gpu=config.train.use_gpu,
            resources_per_worker={"CPU": config.train.cpus_per_worker},
        ),
        # A run of the same name on the same storage resumes from its last checkpoint; the folder's
        # name holds the fingerprint of all that training depends on.
        run_config=ray.train.RunConfig(
            name="workers",
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    reporter.say(f"training on {config.train.workers} Ray Train workers")
    try:
        result = trainer.fit()
        if result.error is not None:
            raise result.error
    except RayTrainError as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise ValueError(str(cause)) from error
    assert result.checkpoint is not None, "training ends with a checkpoint"
    with result.checkpoint.as_directory() as directory:
        return load_state(str(directory))


def _train_worker(loop: dict[str, Any]) -> None:
    """Run on every Ray Train worker: the driver's loop on a slice of each batch."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    count = context.get_world_size()
    aligner = load_aligner(loop["aligner"])
    assert isinstance(aligner, AnisoAlign)
    aligner.to(get_device())

    def average(value: Tensor) -> Tensor:
        if count > 1:
            torch.distributed.all_reduce(value)
        return value / count

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        wrapped: torch.nn.Module = prepare_model(module) if count > 1 else module
        return wrapped

    def report(reached: TrainingState) -> None:
        metrics: dict[str, float] = {"step": sum(stage.step for stage in reached.values())}
        metrics |= {f"{name}_loss": one.losses[-1] for name, one in reached.items() if one.losses}
        if context.get_world_rank() > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(str(Path(folder)), reached)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    state: TrainingState | None = None
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        with resumed.as_directory() as folder:
            state = load_state(str(folder))
    end = aligner.train(
        loop["image"].load(),
        loop["text"].load(),
        worker=Worker(context.get_world_rank(), count, wrap, average),
        state=state,
        checkpoint_every=loop["checkpoint_every"],
        on_checkpoint=report,
    )
    report(end)  # also when nothing was left to train: the run has to name its last checkpoint
