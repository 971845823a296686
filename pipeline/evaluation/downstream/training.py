"""Training a multimodal LM by stages: language, then the projector, then all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.align.training import seed_of
from pipeline.evaluation.downstream.model import MultimodalDecoder, Tokens
from pipeline.evaluation.downstream.samples import Sample
from pipeline.evaluation.downstream.settings import StageSettings

StepDone = Callable[[int, int], None]
"""Called with steps done and steps in all."""

_WARMUP = 0.05
_LARGEST_NORM = 1.0
_SORTED_BATCHES = 16
"""Batches whose samples are sorted by length together, so that little of a batch is padding."""


@dataclass(frozen=True)
class Encoded:
    """A sample as ids: the first `prompt` of them are not learnt."""

    row: int
    tokens: list[int]
    prompt: int

    @property
    def shape(self) -> tuple[int, int]:
        """What samples of one batch should have in common: lengths of the whole and the prompt."""
        return len(self.tokens), self.prompt


def encode(samples: Sequence[Sample], tokens: Tokens) -> list[Encoded]:
    """Return samples as ids; what recurs is encoded once."""
    prompts = {text: tokens.prompt(text) for text in {sample.prompt for sample in samples}}
    answers = {text: tokens.answer(text) for text in {sample.answer for sample in samples}}
    return [
        Encoded(
            sample.row,
            [*prompts[sample.prompt], *answers[sample.answer]],
            len(prompts[sample.prompt]),
        )
        for sample in samples
    ]


def train(
    model: MultimodalDecoder,
    parameters: Sequence[nn.Parameter],
    samples: Sequence[Encoded],
    embeddings: Tensor | None,
    stage: StageSettings,
    *,
    batch_size: int,
    pad: int,
    seed: int,
    progress: StepDone | None = None,
) -> list[float]:
    """Train some parameters on samples about embeddings (n, d), None for text alone.

    AdamW with warm-up and a cosine to zero; returns the loss of each step.
    """
    chosen = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    steps = max(1, math.ceil(stage.epochs * len(samples) / batch_size))
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    generator = torch.Generator().manual_seed(seed_of(seed, "order of samples"))
    losses: list[float] = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "dropout"))  # of decoders that have one
        for batch in _batches(samples, batch_size, steps, generator):
            ids, labels = _padded(batch, pad)
            rows = torch.tensor([sample.row for sample in batch])
            read = None if embeddings is None else embeddings[rows].to(model.device)
            if read is None:  # text alone has no answer to wait for: all of it is learnt
                labels = _all_learnt(ids, batch)
            loss = model.loss(read, ids.to(model.device), labels.to(model.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, _LARGEST_NORM)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if progress is not None:
                progress(len(losses), steps)
    return losses


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(_WARMUP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(
    samples: Sequence[Encoded], size: int, steps: int, generator: torch.Generator
) -> Iterator[list[Encoded]]:
    """Yield `steps` batches, epoch after epoch, of samples of like length."""
    done = 0
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        reach = size * _SORTED_BATCHES
        for start in range(0, len(order), reach):
            part = sorted(order[start : start + reach], key=lambda one: samples[one].shape)
            batches = [part[at : at + size] for at in range(0, len(part), size)]
            for place in torch.randperm(len(batches), generator=generator).tolist():
                yield [samples[one] for one in batches[place]]
                done += 1
                if done == steps:
                    return


def _padded(batch: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels (n, t), padded on the right; prompts and padding are not learnt."""
    width = max(len(sample.tokens) for sample in batch)
    ids = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), -100)
    for place, sample in enumerate(batch):
        tokens = torch.tensor(sample.tokens)
        ids[place, : len(tokens)] = tokens
        labels[place, sample.prompt : len(tokens)] = tokens[sample.prompt :]
    return ids, labels


def _all_learnt(ids: Tensor, batch: Sequence[Encoded]) -> Tensor:
    lengths = torch.tensor([len(sample.tokens) for sample in batch])
    return ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], -100)
