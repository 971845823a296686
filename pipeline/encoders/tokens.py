"""Tokenising with open_clip's tokenizers, and telling which captions they cut."""

from __future__ import annotations

from collections.abc import Sequence
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


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Return the tokens `(n, context)` and whether each caption was cut to fit, `(n,)`.

    Tokenizers cut in silence. Only a row that is full can have been cut, so only full rows are
    tokenised again, without a limit.
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
