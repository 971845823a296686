"""Tokenising with open_clip's tokenizers, and telling which captions they cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import (
    HFTokenizer,
    SigLipTokenizer,
    SimpleTokenizer,
    basic_clean,
    canonicalize_text,
)

_WORDS_KEPT = 2**18


class Tokenizer:
    """One of open_clip's tokenizers, with the same tokens, that tells which captions it cuts.

    open_clip's own vocabulary splits at white space first, so the tokens of a word are looked up
    once it was seen; that is several times as fast, since captions share their words.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        self._simple = type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None
        # Further special tokens may hold spaces.
        self._by_word = self._simple and len(tokenizer.all_special_ids) == 2

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """Return the tokens `(n, context)` and whether each caption was cut to fit, `(n,)`."""
        return self._simple_tokens(texts) if self._simple else _tokenized(self._tokenizer, texts)

    def _simple_tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        begin, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        context = self._tokenizer.context_length
        rows = [self._ids(text) for text in texts]
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows)) + 2
        truncated = lengths > context
        for row in np.flatnonzero(truncated):
            del rows[row][context - 2 :]
        kept = np.minimum(lengths, context)
        tokens = np.zeros((len(rows), context), dtype=np.int64)
        tokens[:, 0] = begin
        columns = np.arange(context)
        inside = (columns >= 1) & (columns < (kept - 1)[:, None])
        tokens[inside] = np.fromiter(
            chain.from_iterable(rows), np.int64, int(kept.sum()) - 2 * len(rows)
        )
        tokens[np.arange(len(rows)), kept - 1] = end
        return torch.from_numpy(tokens), truncated

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of a caption, uncut, without begin and end."""
        # Cleaning leaves plain text as it is, apart from entities, which begin with &.
        if not (self._by_word and text.isascii() and text.isprintable() and "&" not in text):
            ids: list[int] = self._tokenizer.encode(text)
            return ids
        found: list[int] = []
        for word in text.split():
            known = self._words.get(word)
            if known is None:
                if len(self._words) >= _WORDS_KEPT:
                    self._forget()
                known = self._words[word] = self._tokenizer.encode(word)
            found += known
        return found

    def _forget(self) -> None:
        """Drop all words: those of a thousand million captions would fill the memory."""
        self._words.clear()
        special = self._tokenizer.all_special_ids
        names = [self._tokenizer.decoder[one] for one in special]
        self._tokenizer.cache = {name: name for name in names}


def _tokenized(tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Return tokens and what was cut of a tokenizer that cuts in silence.

    Only a row that is full can have been cut, so only full rows are tokenised again, without a
    limit.
    """
    tokens: torch.Tensor = tokenizer(list(texts))
    context = tokens.shape[1]
    truncated = np.zeros(len(texts), dtype=np.bool_)
    for row in _full_rows(tokenizer, tokens):
        truncated[row] = untruncated_length(tokenizer, texts[row]) > context
    return tokens, truncated


def untruncated_length(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of `text`, special tokens included, without the context limit."""
    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2
    if isinstance(tokenizer, SigLipTokenizer):
        return len(tokenizer.tokenizer(canonicalize_text(basic_clean(text))).input_ids)
    # "clips" mode adds its own begin, end and class tokens instead of the tokenizer's.
    own_specials = tokenizer.tokenizer_mode == "clips"
    ids = tokenizer.tokenizer(
        tokenizer.clean_fn(text), add_special_tokens=not own_specials, verbose=False
    ).input_ids
    return len(ids) + (3 if own_specials else 0)


def vocabulary(tokenizer: Any) -> Any:
    """Return what decides the tokenizer's output, beside the model's config, as JSON-able data."""
    if isinstance(tokenizer, SimpleTokenizer):
        return {"merges": list(tokenizer.bpe_ranks), "tokens": list(tokenizer.encoder)}
    inner = tokenizer.tokenizer
    if getattr(inner, "is_fast", False):
        return inner.backend_tokenizer.to_str()
    return sorted(inner.get_vocab().items())


def _full_rows(tokenizer: Any, tokens: torch.Tensor) -> list[int]:
    """Return the rows of `(n, context)` that may have no padding left; never too few."""
    if isinstance(tokenizer, SimpleTokenizer):
        # Token 0 pads here but is also a letter, so the end token is the one to look for.
        full = tokens[:, -1] == tokenizer.eot_token_id
    else:
        assert isinstance(tokenizer, HFTokenizer | SigLipTokenizer), type(tokenizer)
        # Some pad with the end token, and `strip_sep_token` turns the end token into padding;
        # either way a full row shows at most one of them at its padded edge.
        left = getattr(tokenizer.tokenizer, "padding_side", "right") == "left"
        edge = tokens[:, :2] if left else tokens[:, -2:]
        full = (edge != tokenizer.tokenizer.pad_token_id).any(dim=1)
    return [int(row) for row in full.nonzero()]
