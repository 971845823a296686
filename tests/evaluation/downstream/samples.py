"""Tiny made-up data: pictures of one colour each, whose embedding is a code of the colour."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.downstream.model import MultimodalDecoder, Tokens, make_decoder, make_model
from pipeline.evaluation.downstream.samples import (
    DownstreamData,
    Examination,
    Material,
    Sample,
    captioned,
)
from pipeline.evaluation.downstream.settings import (
    DecoderSettings,
    DownstreamSettings,
    InstructionStage,
    LanguageStage,
    ProjectorStage,
    RealInstructionStage,
)
from pipeline.evaluation.pairs import Clouds

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
DIMENSION = 8
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.1,
}
TEXTS = [f"what colour is it? {colour}. a {colour} picture" for colour in COLOURS]


def tiny_settings(**changes: Any) -> DownstreamSettings:
    """Return settings of a model that trains in a second."""
    settings = DownstreamSettings(
        seeds=1,
        real_images=48,
        visual_tokens=2,
        projector_width=16,
        batch_size=16,
        decoder=DecoderSettings(
            config=LLAMA, vocabulary=320, language=LanguageStage(epochs=0.5, learning_rate=5e-3)
        ),
        projector=ProjectorStage(epochs=1, learning_rate=1e-2),
        instructions=InstructionStage(epochs=2, learning_rate=1e-2),
        real_instructions=RealInstructionStage(epochs=3, learning_rate=1e-2),
    )
    return replace(settings, **changes)


def tiny_model(
    settings: DownstreamSettings | None = None, *, texts: list[str] = TEXTS, seed: int = 0
) -> tuple[MultimodalDecoder, Tokens]:
    """Return a random model for embeddings (n, DIMENSION) and its tokenizer."""
    settings = settings or tiny_settings()
    decoder, tokens = make_decoder(settings.decoder, texts, seed)
    return make_model(settings, decoder, DIMENSION, seed), tokens


def coded(kinds: Tensor, seed: int, *, text: bool = False) -> Tensor:
    """Return unit rows (n, DIMENSION) that tell the colours `kinds` (n), a little noisy.

    Those of text stand aside, as a modality gap has it.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.one_hot(kinds, DIMENSION).float()
    rows = rows + 0.05 * torch.randn(rows.shape, generator=generator)
    rows[:, -1] += 0.6 if text else -0.6
    return rows / rows.norm(dim=1, keepdim=True)


def kinds(rows: int, seed: int) -> Tensor:
    """Return colours (n), by number."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(COLOURS), (rows,), generator=generator)


def colour_questions(found: Tensor) -> list[Sample]:
    """Ask for the colour of each row, and after one that is there and one that is not."""
    samples = []
    for row, kind in enumerate(found.tolist()):
        colour, other = COLOURS[kind], COLOURS[(kind + 1 + row % 5) % 6]
        samples.append(Sample(row, "colour", "what colour is it?", colour))
        samples.append(Sample(row, "presence", f"is it {colour}?", "yes"))
        samples.append(Sample(row, "presence", f"is it {other}?", "no"))
    return samples


def named(caption: str) -> Counter[str]:
    """Count the colours of a caption."""
    return Counter(word for word in caption.split() if word in COLOURS)


def tiny_data(*, rows: int = 96, asked: int = 36) -> DownstreamData:
    """Return texts (2 rows), pictures (rows) and an examination of other pictures."""

    def material(found: Tensor, embeddings: Tensor) -> Material:
        captions = captioned([f"a {COLOURS[kind]} picture" for kind in found.tolist()])
        return Material(embeddings, captions, [*captions, *colour_questions(found)])

    of_text, of_image, of_test = kinds(2 * rows, 1), kinds(rows, 2), kinds(asked, 3)
    text = material(of_text, coded(of_text, 4, text=True))
    image = material(of_image, coded(of_image, 5))
    examination = Examination(
        coded(of_test, 6),
        colour_questions(of_test),
        [Counter([COLOURS[kind]]) for kind in of_test.tolist()],
        named,
    )
    return DownstreamData(Clouds(image.embeddings, text.embeddings), text, image, examination)
