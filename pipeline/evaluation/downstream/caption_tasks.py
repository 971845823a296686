"""Tasks on any captioned embeddings: captions, and whether a word of theirs is in the picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.align.training import seed_of
from pipeline.evaluation.downstream.captioned_pairs import CaptionedPairs
from pipeline.evaluation.downstream.samples import (
    DownstreamData,
    Examination,
    Material,
    Sample,
    captioned,
)
from pipeline.evaluation.downstream.settings import DownstreamSettings
from pipeline.evaluation.pairs import Clouds

PRESENCE = "presence"
_WORD = re.compile(r"[^\W\d_]{4,}")
"""Shorter words are mostly grammar, as are those that most captions have."""
_MOST_WORDS = 500
_FEWEST_CAPTIONS = 3
_LARGEST_SHARE = 0.25
"""A word of more captions than this tells little of a picture."""
_FEWEST_ROWS = 40
_TEST_SHARE = 0.25


def caption_data(pairs: CaptionedPairs, settings: DownstreamSettings, seed: int) -> DownstreamData:
    """Split captioned pairs: real images to be asked about, texts, and images to train on.

    No row stands in two parts, so that nothing can lean on a pair; rows of one picture, with a
    caption each, stay together. The evaluation's captions are at most `settings.captions` (twice
    that of text) and `settings.test_images`.

    Raises:
        ValueError: for too few rows, or captions that share no words.
    """
    rows = len(pairs.captions)
    if rows < _FEWEST_ROWS:
        raise ValueError(
            f"{pairs.path} has {rows} captioned pairs; training and asking needs {_FEWEST_ROWS} or "
            "more"
        )
    generator = torch.Generator().manual_seed(seed_of(seed, "downstream split"))
    pictures = _pictures(pairs.image)
    place = torch.randperm(max(pictures) + 1, generator=generator).argsort().tolist()
    pictures = [place[picture] for picture in pictures]
    order = sorted(range(rows), key=pictures.__getitem__)
    asked = min(settings.test_images, round(rows * _TEST_SHARE))
    left = _after(order, asked, pictures)
    # Two thirds are text, so that half of the text is as much as there are images.
    two_thirds = len(left) * 2 // 3
    of_text = left[: min(2 * settings.captions, two_thirds)]
    of_image = _after(left, two_thirds, pictures)[: settings.captions]
    vocabulary = _vocabulary([pairs.captions[row] for row in (*of_text, *of_image)])
    if len(vocabulary) < 2:
        raise ValueError(
            f"the captions of {pairs.path} have no two words that at least {_FEWEST_CAPTIONS} of "
            f"them share and not more than {_LARGEST_SHARE:.0%}; they cannot be asked about"
        )
    words = _Words(vocabulary)
    text = _material(pairs.text, pairs.captions, of_text, words, seed)
    image = _material(pairs.image, pairs.captions, of_image, words, seed)
    test = order[:asked]
    captions = [pairs.captions[row] for row in test]
    return DownstreamData(
        fitting=Clouds(image=image.embeddings, text=text.embeddings),
        text=text,
        image=image,
        test=Examination(
            pairs.image[test],
            words.questions(captions, seed_of(seed, "questions")),
            [words.named(caption) for caption in captions],
            words.named,
        ),
    )


def _pictures(image: Tensor) -> list[int]:
    """Return a number for each row's picture, the same where embeddings are the same."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(row.tobytes(), len(numbers)) for row in image.numpy()]


def _after(rows: list[int], start: int, pictures: Sequence[int]) -> list[int]:
    """Return rows from a place on, without those of a picture that begins before it."""
    seen = pictures[rows[start - 1]] if 0 < start <= len(rows) else None
    return [row for row in rows[start:] if pictures[row] != seen]


def _vocabulary(captions: Sequence[str]) -> dict[str, int]:
    """Return the words that pictures are asked about, and how many captions have each."""
    found: Counter[str] = Counter()
    for caption in captions:
        found.update(_words(caption))
    most = _LARGEST_SHARE * len(captions)
    kept = [(word, count) for word, count in found.items() if _FEWEST_CAPTIONS <= count <= most]
    return dict(sorted(kept, key=lambda one: (-one[1], one[0]))[:_MOST_WORDS])


def _words(caption: str) -> set[str]:
    return set(_WORD.findall(caption.lower()))


class _Words:
    """What captions name, in words of a vocabulary."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._names = list(vocabulary)
        counts = np.array(list(vocabulary.values()), dtype=np.float64)
        self._chances = counts / counts.sum()

    def named(self, caption: str) -> Counter[str]:
        """Return the words of the vocabulary that a caption has."""
        return Counter(_words(caption) & set(self._names))

    def questions(self, captions: Sequence[str], seed: int) -> list[Sample]:
        """Ask of each caption for a word that it has, and for one that it has not.

        Absent words are drawn as often as captions have them, so that a word alone tells nothing.
        """
        samples = []
        for row, caption in enumerate(captions):
            generator = np.random.default_rng([seed, row])
            there = sorted(self.named(caption))
            if not there or len(there) == len(self._names):
                continue
            present = there[int(generator.integers(len(there)))]
            absent = present
            while absent in there:
                absent = self._names[int(generator.choice(len(self._names), p=self._chances))]
            for word, answer in ((present, "yes"), (absent, "no")):
                prompt = f"does the picture go with the word {word}?"
                samples.append(Sample(row, PRESENCE, prompt, answer))
        return samples


def _material(
    embeddings: Tensor, captions: Sequence[str], rows: list[int], words: _Words, seed: int
) -> Material:
    chosen = [captions[row] for row in rows]
    described = captioned(chosen)
    asked = words.questions(chosen, seed_of(seed, "instructions"))
    return Material(embeddings[rows], described, [*described, *asked])
