"""What a multimodal LM is trained on and asked: embeddings by row, prompts, answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.evaluation.pairs import Clouds

DESCRIBE = "describe the picture."
CAPTIONING = "captioning"


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer about the picture whose embedding is row `row`."""

    row: int
    task: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Material:
    """Embeddings (n, d), a caption for each, and instructions about them.

    Stage 1 reads the captions, stage 2 the instructions, descriptions among them.
    """

    embeddings: Tensor
    captions: Sequence[Sample]
    instructions: Sequence[Sample]

    def first(self, rows: int) -> Material:
        """Return the first rows and what is about them."""
        return Material(
            self.embeddings[:rows],
            [sample for sample in self.captions if sample.row < rows],
            [sample for sample in self.instructions if sample.row < rows],
        )

    def seen_as(self, embeddings: Tensor) -> Material:
        """Return the same captions and instructions about other embeddings (n, d)."""
        return replace(self, embeddings=embeddings)


def captioned(captions: Sequence[str]) -> list[Sample]:
    """Return captions as answers to being asked for them, row by row."""
    return [Sample(row, CAPTIONING, DESCRIBE, caption) for row, caption in enumerate(captions)]


@dataclass(frozen=True)
class Examination:
    """Real images (m, d), questions about them, and what a caption of each should name.

    `named` counts what a generated caption names, in the terms of `references`.
    """

    embeddings: Tensor
    questions: Sequence[Sample]
    references: Sequence[Counter[str]]
    named: Callable[[str], Counter[str]]


@dataclass(frozen=True)
class DownstreamData:
    """All that an evaluation needs.

    `fitting` are unpaired clouds to fit methods on; `text` captions with text embeddings (n, d),
    of which the first half is "the text" and all is "twice the text"; `image` real pictures to
    train on; `test` pictures that nothing else has seen, and what is asked of them.
    """

    fitting: Clouds
    text: Material
    image: Material
    test: Examination
