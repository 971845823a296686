"""Trials: one method and one seed, trained in every regime and read on real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.align.registry import create_aligner
from pipeline.align.settings import AlignSettings
from pipeline.align.training import one_thread
from pipeline.evaluation.downstream.answering import examine
from pipeline.evaluation.downstream.model import make_decoder, make_model
from pipeline.evaluation.downstream.samples import DownstreamData, Material, Sample
from pipeline.evaluation.downstream.settings import DownstreamSettings, StageSettings
from pipeline.evaluation.downstream.training import encode, train

BLIND, REAL_IMAGES = "blind", "real-images"
REFERENCES = (BLIND, REAL_IMAGES)
"""Trials that are no method: the floor sees zero embeddings, the ceiling real images throughout."""

Weights = dict[str, Tensor]
StageDone = Callable[[str], None]
"""Called with the name of a stage that is done."""


@dataclass(frozen=True)
class TrialResult:
    """The marks of a trial by regime and task.

    A reference's stand under its own name, and in `real-instructions`, where its instructions are
    about the few real images too.

    `losses` are means over the last tenth of stage 2's steps, `seconds` those of it all.
    """

    method: str
    seed: int
    marks: dict[str, dict[str, float]]
    losses: dict[str, float]
    parameters: int
    seconds: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


def wanted_regimes(method: str, settings: DownstreamSettings) -> set[str]:
    """Return what a trial's marks are by: the regimes asked for, of a reference its own name."""
    if method not in REFERENCES:
        return set(settings.regimes)
    return {method, *({"real-instructions"} & set(settings.regimes))}


def learn_language(data: DownstreamData, settings: DownstreamSettings, seed: int) -> Weights:
    """Return the weights of a decoder that has read the text alone; empty for one from a path.

    Captions and instructions of both materials, without any picture: what a pretrained language
    model would bring along, the same for every trial of a seed.
    """
    if settings.decoder.path is not None:
        return {}
    with one_thread():
        decoder, tokens = make_decoder(settings.decoder, _texts(data), seed)
        model = make_model(settings, decoder, data.test.embeddings.shape[1], seed)
        read = [*data.text.captions, *data.text.instructions, *data.image.instructions]
        train(
            model,
            list(decoder.parameters()),
            encode(read, tokens),
            None,
            settings.decoder.language,
            batch_size=settings.batch_size,
            pad=tokens.pad,
            seed=seed,
        )
    return {name: tensor.cpu().clone() for name, tensor in decoder.state_dict().items()}


def run_trial(
    method: str,
    seed: int,
    data: DownstreamData,
    settings: DownstreamSettings,
    align: AlignSettings,
    language: Weights,
) -> TrialResult:
    """Fit a method, train on its substitutes in each regime, and read on real images.

    `language` are the weights that `learn_language` returned for the seed. On one CPU thread, so
    that the same trial gives the same marks on any machine of a kind.

    Raises:
        ValueError: for an unknown method, or clouds that it cannot be fitted on.
    """
    start = time.perf_counter()
    with one_thread():
        trainer = _Trainer(seed, data, settings, language, blind=method == BLIND)
        half = data.text.first(len(data.text.embeddings) // 2)
        few = data.image.first(settings.real_images)
        if method == BLIND:
            unseen, few = _unseen(half), _unseen(few)
            projected = trainer.projector(unseen)
            trainer.read(BLIND, projected, unseen, settings.instructions)
            if "real-instructions" in settings.regimes:
                trainer.read("real-instructions", projected, few, settings.real_instructions)
        elif method == REAL_IMAGES:
            projected = trainer.projector(data.image)
            trainer.read(REAL_IMAGES, projected, data.image, settings.instructions)
            if "real-instructions" in settings.regimes:
                trainer.read("real-instructions", projected, few, settings.real_instructions)
        else:
            aligner = create_aligner(method, align, seed)
            aligner.fit(data.fitting.image, data.fitting.text)
            # As a dataset holds them: a method whose rows are not of unit norm trains on those.
            whole = data.text.seen_as(aligner.transform(data.text.embeddings))
            part = whole.first(len(half.embeddings))
            if {"text-only", "real-instructions"} & set(settings.regimes):
                projected = trainer.projector(part)
                if "text-only" in settings.regimes:
                    trainer.read("text-only", projected, part, settings.instructions)
                if "real-instructions" in settings.regimes:
                    trainer.read("real-instructions", projected, few, settings.real_instructions)
            if "double-text" in settings.regimes:
                trainer.read("double-text", trainer.projector(whole), whole, settings.instructions)
    return TrialResult(
        method=method,
        seed=seed,
        marks=trainer.marks,
        losses=trainer.losses,
        parameters=trainer.parameters,
        seconds=time.perf_counter() - start,
    )


def _texts(data: DownstreamData) -> list[str]:
    """Return what a vocabulary is learnt from: all that a model of any regime reads."""
    samples = [
        sample
        for material in (data.text, data.image)
        for sample in (*material.captions, *material.instructions)
    ]
    texts = [text for sample in samples for text in (sample.prompt, sample.answer)]
    return list(dict.fromkeys(texts))


class _Trainer:
    """The stages of one trial on one decoder, which each start gives its weights of before."""

    def __init__(
        self,
        seed: int,
        data: DownstreamData,
        settings: DownstreamSettings,
        language: Weights,
        *,
        blind: bool,
    ) -> None:
        self._seed, self._data, self._settings, self._blind = seed, data, settings, blind
        decoder, self._tokens = make_decoder(settings.decoder, _texts(data), seed)
        self._language = language or {
            name: tensor.clone() for name, tensor in decoder.state_dict().items()
        }
        dimension = data.test.embeddings.shape[1]
        self._model = make_model(settings, decoder, dimension, seed)
        self._fresh = _copied(self._model.projector)
        self.parameters = sum(one.numel() for one in self._model.parameters())
        self.marks: dict[str, dict[str, float]] = {}
        self.losses: dict[str, float] = {}

    def projector(self, material: Material) -> Weights:
        """Stage 1: train a fresh projector on captions, the decoder frozen; returns its weights."""
        self._model.decoder.load_state_dict(self._language)
        self._model.projector.load_state_dict(self._fresh)
        self._train(self._model.projector, material.captions, material, self._settings.projector)
        return _copied(self._model.projector)

    def read(
        self, regime: str, projector: Weights, material: Material, stage: StageSettings
    ) -> None:
        """Stage 2: train all of it on instructions; then mark its answers about real images."""
        self._model.decoder.load_state_dict(self._language)
        self._model.projector.load_state_dict(projector)
        losses = self._train(self._model, material.instructions, material, stage)
        last = losses[-max(1, len(losses) // 10) :]
        self.losses[regime] = sum(last) / len(last)
        self.marks[regime] = examine(self._model, self._tokens, self._data.test, blind=self._blind)

    def _train(
        self,
        part: torch.nn.Module,
        samples: Sequence[Sample],
        material: Material,
        stage: StageSettings,
    ) -> list[float]:
        return train(
            self._model,
            list(part.parameters()),
            encode(samples, self._tokens),
            material.embeddings,
            stage,
            batch_size=self._settings.batch_size,
            pad=self._tokens.pad,
            seed=self._seed,
        )


def _unseen(material: Material) -> Material:
    return material.seen_as(torch.zeros_like(material.embeddings))


def _copied(module: torch.nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}
