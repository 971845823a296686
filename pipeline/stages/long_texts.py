"""Captions longer than an encoder's context: encoded in parts, so that none of them is cut off."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.storage.columns import Mask

Embeddings = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], tuple[Embeddings, Mask]]

_ENDS = (re.compile(r"[.!?;。！？](?=\s|$)"), re.compile(r"[,:，、]"), re.compile(r"\s"))
"""Where a caption is cut best, next best, and at least: behind a sentence, a clause, a word."""
_MIDDLE = 0.25
"""No part is shorter than this share of what is cut, if there is any place of some kind."""


def encode_in_parts(encode: Encode, texts: Sequence[str]) -> tuple[Embeddings, Mask]:
    """Return the embeddings (n, d) of texts, and which were encoded in parts, (n,).

    `encode` says which texts its encoder cut. Each of those is halved, near its middle behind a
    sentence, a clause or a word, until no part is cut, and its embedding is the mean of its parts'
    weighted by their lengths, at unit length.
    """
    embeddings, cut = encode(texts)
    if not cut.any():
        return embeddings, cut
    embeddings = np.array(embeddings, copy=True)
    for row, one in zip(np.flatnonzero(cut), _in_parts(encode, texts, cut), strict=True):
        embeddings[row] = one
    return embeddings, cut


def halves(text: str) -> tuple[str, str]:
    """Return a text of two characters or more in two parts, neither of them empty or blank."""
    middle = len(text) / 2
    least = len(text) * _MIDDLE
    for end in _ENDS:
        places = [match.end() for match in end.finditer(text)]
        inside = [place for place in places if least <= place <= len(text) - least]
        for place in sorted(inside, key=lambda place: abs(place - middle)):
            first, second = text[:place].strip(), text[place:].strip()
            if first and second:
                return first, second
    place = len(text) // 2
    return text[:place], text[place:]


def _in_parts(encode: Encode, texts: Sequence[str], cut: Mask) -> list[Embeddings]:
    """Return the embedding (d,) of each text that was cut."""
    whole = [int(row) for row in np.flatnonzero(cut)]
    waiting = [(place, part) for place, row in enumerate(whole) for part in halves(texts[row])]
    found: list[tuple[int, int, Embeddings]] = []
    while waiting:
        embeddings, still_cut = encode([part for _, part in waiting])
        next_parts: list[tuple[int, str]] = []
        for (place, part), embedding, long in zip(waiting, embeddings, still_cut, strict=True):
            if long and len(part) > 1:
                next_parts += [(place, half) for half in halves(part)]
            else:
                found.append((place, len(part), embedding))
        waiting = next_parts
    sums = np.zeros((len(whole), found[0][2].shape[0]), dtype=np.float64)
    for place, length, embedding in found:
        sums[place] += length * embedding.astype(np.float64)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    means = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
    return list(means.astype(np.float32))
