from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.long_texts import encode_in_parts, halves

CONTEXT = 12


class Words:
    """An encoder of at most CONTEXT characters: counts of letters, at unit length."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        cut = np.array([len(text) > CONTEXT for text in texts])
        counts = np.array(
            [[1.0, *(text[:CONTEXT].count(letter) for letter in "abc")] for text in texts]
        )
        counts /= np.linalg.norm(counts, axis=1, keepdims=True)
        return counts.astype(np.float32), cut


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=2, max_size=60))
def test_halves_lose_nothing_but_the_space_between(text):
    first, second = halves(text)
    assert first
    assert second
    assert re.sub(r"\s", "", first + second) == re.sub(r"\s", "", text)
    assert max(len(first), len(second)) < len(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A red ball. It lies there.", ("A red ball.", "It lies there.")),
        ("a red ball, and a cat, who sleeps", ("a red ball,", "and a cat, who sleeps")),
        ("one two three four", ("one two", "three four")),
        ("Is v1.5 it? No, it is far from it", ("Is v1.5 it?", "No, it is far from it")),
        ("x. a very long sentence without end", ("x. a very long", "sentence without end")),
        ("abcdef", ("abc", "def")),
        ("一只猫坐着。它在等待。", ("一只猫坐着。", "它在等待。")),
    ],
)
def test_where_a_caption_is_cut(text, parts):
    found = halves(text)
    if text.startswith("一"):
        assert "".join(found) == text
    else:
        assert found == parts


def test_short_captions_are_left_alone():
    encoder = Words()
    embeddings, split = encode_in_parts(encoder, ["a", "b b"])
    assert not split.any()
    assert len(encoder.calls) == 1
    np.testing.assert_array_equal(embeddings, Words()(["a", "b b"])[0])


def test_a_long_caption_is_the_mean_of_its_parts():
    texts = ["a", "a a a a. b b b b b", "c"]
    embeddings, split = encode_in_parts(Words(), texts)
    assert split.tolist() == [False, True, False]
    parts = ["a a a a.", "b b b b b"]
    mean = sum(
        len(part) * one for part, one in zip(parts, Words()(parts)[0].astype(float), strict=True)
    )
    np.testing.assert_allclose(embeddings[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(embeddings[[0, 2]], Words()(["a", "c"])[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abc .,", min_size=1, max_size=90), min_size=1, max_size=6))
def test_every_part_fits_and_every_row_is_at_unit_length(texts):
    encoder = Words()
    embeddings, split = encode_in_parts(encoder, texts)
    assert split.tolist() == [len(text) > CONTEXT for text in texts]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    # A text of up to 90 characters is in parts of 12 after no more than a few halvings.
    assert len(encoder.calls) <= 12
    again, _ = encode_in_parts(Words(), texts)
    np.testing.assert_array_equal(embeddings, again)
