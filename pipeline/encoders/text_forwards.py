"""The forward of each kind of text tower, cut to the captions' lengths where that changes nothing.

open_clip runs every caption at the full context (77 positions), though captions average a dozen
tokens. What a tower does not see need not be computed: under a causal mask all that comes after the
pooled position, under a mask of the padding the padding. Which of them a tower has is told by its
own attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import open_clip
import torch
from open_clip.hf_model import (
    ClsLastHiddenStatePooler,
    ClsPooler,
    HFTextEncoder,
    MeanPooler,
)
from open_clip.transformer import ResidualAttentionBlock, TextTransformer


class TextForward(Protocol):
    """How captions' tokens become embeddings in one text tower."""

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return how many first positions of each row of `(n, context)` it needs, `(n,)`."""
        ...

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(n, d)` of tokens `(n, length)`, cut to the longest row's need."""
        ...


def text_forward(model: Any) -> TextForward:
    """Return the shortest forward that gives what `model.encode_text` gives."""
    for kind in (CausalForward, ClassTokenForward, MaskedPaddingForward):
        found = kind.of(model)
        if found is not None:
            return found
    return PlainForward(model)


@dataclass(frozen=True)
class PlainForward:
    """open_clip's own forward, over the full context.

    For towers that read their padding: bidirectional ones without a mask of it (SigLIP, CLIPA,
    MobileCLIP-S), those that pool the last position, and kinds unknown here.
    """

    model: Any

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the full context for every row."""
        return torch.full((len(tokens),), tokens.shape[1])

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(n, d)` of tokens `(n, context)`."""
        return cast(torch.Tensor, self.model.encode_text(tokens))


@dataclass(frozen=True)
class MaskedPaddingForward:
    """A Hugging Face tower: its attention and its pooling leave the padding out.

    open_clip gives the tower a mask of every token that is `pad_token_id`, so columns that hold
    nothing else at the end of all rows change nothing.
    """

    model: Any
    pad_id: int

    @classmethod
    def of(cls, model: Any) -> MaskedPaddingForward | None:
        """Return the forward of an open_clip model, or None if its text tower is another kind."""
        tower = getattr(model, "text", None)
        if not isinstance(tower, HFTextEncoder):
            return None
        pooled = type(tower.pooler) in (MeanPooler, ClsPooler, ClsLastHiddenStatePooler)
        # Other transformers may attend by blocks of the length that they are given.
        masked = tower.config.model_type in ("bert", "roberta", "xlm-roberta", "mt5", "m2m_100")
        pad_id = tower.config.pad_token_id
        return cls(model, pad_id) if pooled and masked and pad_id is not None else None

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the position after each row's last token that is not padding, `(n,)`."""
        lengths = _unpadded(tokens, self.pad_id)
        # Attention over nothing but padding is spread over all of it.
        return torch.where(lengths > 0, lengths, tokens.shape[1])

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(n, d)` of tokens `(n, length)`."""
        return cast(torch.Tensor, self.model.encode_text(tokens))


@dataclass(frozen=True)
class ClassTokenForward:
    """CoCa's tower: a class token after the whole context, which does not see the padding.

    Under either of open_clip's masks of the padding (in the usual one the first position of the
    padding is seen) nothing after the padding's first position reaches the class token, which keeps
    its own position.
    """

    tower: Any

    @classmethod
    def of(cls, model: Any) -> ClassTokenForward | None:
        """Return the forward of an open_clip model, or None if its text tower is another kind."""
        tower = getattr(model, "text", None)
        if isinstance(tower, TextTransformer) and tower.cls_emb is not None:
            return cls(tower)
        return None

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the caption and one position of its padding, `(n,)`."""
        return (_unpadded(tokens, self.tower.pad_id) + 1).clamp(max=tokens.shape[1])

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(n, d)` of tokens `(n, length)`."""
        tower = self.tower
        rows, length = tokens.shape
        class_token = tower.cls_emb.expand(rows, 1, -1)
        x = torch.cat([tower.token_embedding(tokens), class_token], dim=1)
        positions = tower.positional_embedding
        x = x + torch.cat([positions[:length], positions[tower.context_length :]])
        mask = tower._build_additive_mask(tokens, length + 1, x.dtype)
        if tower.attn_mask is not None:
            mask = mask + tower.attn_mask[: length + 1, : length + 1]
        last = torch.full((rows,), length, device=tokens.device)
        x = _pooled_output(tower.transformer, x, mask, last)
        return _projected(tower.ln_final(x), tower.text_projection)


@dataclass(frozen=True)
class CausalForward:
    """A tower in which no position sees what comes after it, pooled at one position a caption."""

    tower: Any
    pool: str
    end_token: int

    @classmethod
    def of(cls, model: Any) -> CausalForward | None:
        """Return the forward of an open_clip model, or None if its text tower is another kind."""
        if isinstance(model, open_clip.CLIP):
            tower, pool, end_token = model, model.text_pool_type, model.text_eos_id
        elif isinstance(getattr(model, "text", None), TextTransformer):
            tower, pool, end_token = model.text, model.text.pool_type, model.text.eos_id
        else:
            return None
        has_class_token = getattr(tower, "cls_emb", None) is not None
        if tower.attn_mask is None or has_class_token or pool not in ("first", "argmax", "eos"):
            return None
        return cls(tower, pool, end_token)

    def lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the position after each row's pooled one, `(n,)`."""
        return self._pooled_positions(tokens) + 1

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(n, d)` of tokens `(n, length)`."""
        tower = self.tower
        length = tokens.shape[1]
        pooled = self._pooled_positions(tokens)
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        mask = tower.attn_mask[:length, :length]
        x = _pooled_output(tower.transformer, x, mask, pooled)
        return _projected(tower.ln_final(x), tower.text_projection)

    def _pooled_positions(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the position that is pooled in each row of `(n, length)`, `(n,)`."""
        if self.pool == "argmax":
            return tokens.argmax(dim=1)
        if self.pool == "eos":
            return (tokens == self.end_token).int().argmax(dim=1)
        return torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)


def _unpadded(tokens: torch.Tensor, pad_id: int) -> torch.Tensor:
    """Return the position after the last token of each row that is not `pad_id`, 0 if all are."""
    positions = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return ((tokens != pad_id) * positions).amax(dim=1)


def _pooled_output(
    transformer: Any, x: torch.Tensor, mask: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Return the transformer's output `(n, width)` at the pooled positions `(n,)`.

    All after the last block's attention works position by position, so pooling comes before it:
    nine tenths of that block are spared at every other position. The mask is one for all, `(length,
    length)`, or one for each row and head, `(n * heads, length, length)`.
    """
    rows = torch.arange(len(x), device=x.device)
    last = transformer.resblocks[-1]
    if not (type(last) is ResidualAttentionBlock and transformer.batch_first):
        return cast(torch.Tensor, transformer(x, attn_mask=mask))[rows, pooled]
    for block in transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    seen = last.ln_1(x)
    heads = last.attn.num_heads
    if mask.dim() == 2:
        visible = mask[pooled].repeat_interleave(heads, dim=0)
    else:
        each = torch.arange(len(mask), device=x.device)
        visible = mask[each, pooled.repeat_interleave(heads)]
    visible = visible.unsqueeze(1)
    found = last.attention(seen[rows, pooled].unsqueeze(1), seen, seen, attn_mask=visible)
    out: torch.Tensor = x[rows, pooled] + last.ls_1(found.squeeze(1))
    return out + last.ls_2(last.mlp(last.ln_2(out)))


def _projected(x: torch.Tensor, projection: torch.nn.Linear | torch.Tensor | None) -> torch.Tensor:
    if isinstance(projection, torch.nn.Linear):
        return cast(torch.Tensor, projection(x))
    return x if projection is None else x @ projection
