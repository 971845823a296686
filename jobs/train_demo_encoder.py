"""Train the demo encoder and write its folder: `python jobs/train_demo_encoder.py --out FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import torch
from open_clip import SimpleTokenizer

from pipeline.demo.training import (
    CONTEXT_LENGTH,
    VOCABULARY_NAME,
    Training,
    build_model,
    encoder_config,
    learn_merges,
    save_encoder,
    train,
    write_vocabulary,
)
from pipeline.demo.world import TRAINING_INDEX, Scene

VOCABULARY_CAPTIONS = 20_000
VOCABULARY_MERGES = 512


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights and scenes.")
@click.option("--steps", default=Training.steps, show_default=True, help="Optimizer steps.")
@click.option("--batch-rows", default=Training.batch_rows, show_default=True)
@click.option("--learning-rate", default=Training.learning_rate, show_default=True)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    help="CPU threads; part of the result. On a busy machine more are slower.",
)
def main(
    out: Path, seed: int, steps: int, batch_rows: int, learning_rate: float, threads: int
) -> None:
    """Train the small open_clip model of the captioned-scenes world, in minutes on one core."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)
    scenes = (Scene(seed, TRAINING_INDEX + row) for row in range(VOCABULARY_CAPTIONS))
    merges = learn_merges((scene.caption() for scene in scenes), VOCABULARY_MERGES)
    vocabulary = out / VOCABULARY_NAME
    write_vocabulary(merges, vocabulary)
    tokenizer = SimpleTokenizer(str(vocabulary), context_length=CONTEXT_LENGTH)
    config = encoder_config(tokenizer.vocab_size)
    model = build_model(config, seed)
    training = Training(seed, steps, batch_rows, learning_rate)
    started = time.perf_counter()

    def show(done: int, loss: float) -> None:
        if done % 25 == 0 or done == steps:
            seconds = time.perf_counter() - started
            left = seconds / done * (steps - done)
            click.echo(f"step {done}/{steps}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left")
            sys.stdout.flush()

    train(model, tokenizer, training, show)
    save_encoder(model, config, out)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    click.echo(f"wrote {out} ({size:.2f} MB, vocabulary of {tokenizer.vocab_size})")


if __name__ == "__main__":
    main()
