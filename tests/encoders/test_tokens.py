"""Captions that a tokenizer cuts are found, for each of open_clip's tokenizers.

The Hugging Face ones need a package and files that tests can't count on; a word-splitting stand-in
takes the place of the tokenizer inside them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, get_clean_fn

from pipeline.encoders import tokens as tokens_module
from pipeline.encoders.tokens import Tokenizer, vocabulary

CONTEXT = 8
PAD, BEGIN, END, CLASS = 0, 1, 2, 3


class Words:
    """One token a word, between a begin and an end token, like a Hugging Face tokenizer."""

    bos_token_id, eos_token_id, sep_token_id, cls_token_id = BEGIN, END, END, CLASS
    is_fast = False

    def __init__(self, pad: int, side: str) -> None:
        self.pad_token_id = pad
        self.padding_side = side

    def __call__(
        self,
        text: str | list[str],
        *,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **_: Any,
    ) -> Any:
        if isinstance(text, str):
            return SimpleNamespace(input_ids=self._encode(text, add_special_tokens))
        rows = [self._encode(one, add_special_tokens) for one in text]
        if max_length is None:
            return {"input_ids": rows}
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], END] for row in rows]
        padding = [[self.pad_token_id] * (max_length - len(row)) for row in rows]
        pairs = zip(rows, padding, strict=True)
        return SimpleNamespace(
            input_ids=torch.tensor(
                [pad + row if self.padding_side == "left" else row + pad for row, pad in pairs]
            )
        )

    @staticmethod
    def _encode(text: str, specials: bool) -> list[int]:
        words = [10] * len(text.split())
        return [BEGIN, *words, END] if specials else words

    def get_vocab(self) -> dict[str, int]:
        return {"b": 1, "a": 0}


def hugging_face(pad: int, side: str, *, mode: str = "", strip: bool = False) -> HFTokenizer:
    tokenizer = HFTokenizer.__new__(HFTokenizer)
    tokenizer.tokenizer = Words(pad, side)
    tokenizer.tokenizer_mode = mode
    tokenizer.context_length = CONTEXT
    tokenizer.clean_fn = get_clean_fn("whitespace")
    tokenizer.strip_sep_token = strip
    return tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [PAD, END])
@pytest.mark.parametrize("strip", [False, True])
def test_hugging_face(pad: int, side: str, strip: bool) -> None:
    tokenizer = hugging_face(pad, side, strip=strip)
    texts = ["word " * k for k in range(12)]
    tokens, truncated = Tokenizer(tokenizer)(texts)
    assert tokens.shape == (12, CONTEXT)
    assert truncated.tolist() == [k + 2 > CONTEXT for k in range(12)]


def test_hugging_face_with_class_token_at_the_end() -> None:
    tokenizer = Tokenizer(hugging_face(PAD, "right", mode="clips"))
    _, truncated = tokenizer(["word " * k for k in range(12)])
    assert truncated.tolist() == [k + 3 > CONTEXT for k in range(12)]


def test_siglip() -> None:
    tokenizer = SigLipTokenizer.__new__(SigLipTokenizer)
    tokenizer.tokenizer = Words(1, "right")
    tokenizer.context_length = CONTEXT
    _, truncated = Tokenizer(tokenizer)(["word! " * k for k in range(12)])
    assert truncated.tolist() == [k + 2 > CONTEXT for k in range(12)]


SIMPLE = SimpleTokenizer(context_length=CONTEXT)
FAST = Tokenizer(SIMPLE)


@given(st.lists(st.text() | st.text(st.sampled_from("aBc'1.,&;<>_ \t\n-")), max_size=5))
@example(["<start_of_text> a<end_of_text>b", "it's  A dog's", "&amp;lt; &eacute;", "", " "])
@example(["caf\u00e9 \ufb01ve \u2018quoted\u2019", "a\x1b[31mb", "\x00", "o" * 50])
@example(["word " * 20])
def test_words_looked_up_are_the_tokenizers_own(texts: list[str]) -> None:
    tokens, truncated = FAST(texts)
    assert torch.equal(tokens, SIMPLE(texts))
    assert truncated.tolist() == [len(SIMPLE.encode(one)) + 2 > CONTEXT for one in texts]


@pytest.mark.parametrize("clean", ["canonicalize", "whitespace"])
def test_words_of_other_ways_of_cleaning(clean: str) -> None:
    tokenizer = SimpleTokenizer(context_length=CONTEXT, clean=clean)
    texts = ["A dog_and a CAT!", "it's {one}, _ - two"]
    assert torch.equal(Tokenizer(tokenizer)(texts)[0], tokenizer(texts))


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_WORDS_KEPT", 3)
    plain = SimpleTokenizer(context_length=CONTEXT)
    tokenizer = Tokenizer(plain)
    texts = [f"word{row} dog <end_of_text>" for row in range(9)]
    assert torch.equal(tokenizer(texts)[0], SIMPLE(texts))
    assert len(tokenizer._words) <= 3
    assert len(plain.cache) <= 2 + 3 * 3


def test_vocabulary_is_in_a_fixed_order() -> None:
    assert vocabulary(hugging_face(PAD, "right")) == [("a", 0), ("b", 1)]
