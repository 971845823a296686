"""Captions to embeddings, through a text transformer trimmed to the captions' lengths.

open_clip runs every caption at the full context (77 positions), though captions average a dozen
tokens. Under a causal mask no position sees what comes after it, so everything past the pooled
position can be left out without changing the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transformer import ResidualAttentionBlock, TextTransformer

from pipeline.encoders.micro_batches import MicroBatches
from pipeline.encoders.tokens import Tokenizer


class TextEncoding(NamedTuple):
    """Embeddings `(n, d)`, float32 of unit length, and which captions were cut, `(n,)`."""

    embeddings: torch.Tensor
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class CausalTower:
    """The parts of a text tower that may be trimmed: causal, pooled at one position a caption."""

    token_embedding: torch.nn.Embedding
    positional_embedding: torch.Tensor
    transformer: Any
    causal_mask: torch.Tensor
    final_norm: torch.nn.Module
    projection: torch.nn.Linear | torch.Tensor | None
    pool: str
    end_token: int

    @classmethod
    def of(cls, model: Any) -> CausalTower | None:
        """Return the tower of an open_clip model, or None where trimming would change the result.

        A bidirectional tower reads its padding; "last" pooling and CoCa's appended class token
        read the full context; a Hugging Face tower has its own attention.
        """
        if isinstance(model, open_clip.CLIP):
            tower, pool, end_token = model, model.text_pool_type, model.text_eos_id
        elif isinstance(getattr(model, "text", None), TextTransformer):
            tower, pool, end_token = model.text, model.text.pool_type, model.text.eos_id
        else:
            return None
        has_class_token = getattr(tower, "cls_emb", None) is not None
        if tower.attn_mask is None or has_class_token or pool not in ("first", "argmax", "eos"):
            return None
        return cls(
            token_embedding=tower.token_embedding,
            positional_embedding=tower.positional_embedding,
            transformer=tower.transformer,
            causal_mask=tower.attn_mask,
            final_norm=tower.ln_final,
            projection=tower.text_projection,
            pool=pool,
            end_token=end_token,
        )

    def pooled_positions(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the position that the tower pools in each row of `(n, context)`, `(n,)`."""
        if self.pool == "argmax":
            return tokens.argmax(dim=1)
        if self.pool == "eos":
            return (tokens == self.end_token).int().argmax(dim=1)
        return torch.zeros(len(tokens), dtype=torch.int64)

    def forward(self, tokens: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `(n, d)` of tokens `(n, length)` pooled at positions `(n,)`."""
        length = tokens.shape[1]
        x: torch.Tensor = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.final_norm(self._pooled_output(x, self.causal_mask[:length, :length], pooled))
        if isinstance(self.projection, torch.nn.Linear):
            x = self.projection(x)
        elif self.projection is not None:
            x = x @ self.projection
        return x

    def _pooled_output(
        self, x: torch.Tensor, mask: torch.Tensor, pooled: torch.Tensor
    ) -> torch.Tensor:
        """Return the transformer's output `(n, width)` at the pooled positions `(n,)`.

        All after the last block's attention works position by position, so pooling comes before
        it: nine tenths of that block are spared at every other position.
        """
        rows = torch.arange(len(x), device=x.device)
        blocks = self.transformer.resblocks
        last = blocks[-1]
        if not (type(last) is ResidualAttentionBlock and self.transformer.batch_first):
            return cast(torch.Tensor, self.transformer(x, attn_mask=mask))[rows, pooled]
        for block in blocks[:-1]:
            x = block(x, attn_mask=mask)
        seen = last.ln_1(x)
        visible = mask[pooled].repeat_interleave(last.attn.num_heads, dim=0).unsqueeze(1)
        found = last.attention(seen[rows, pooled].unsqueeze(1), seen, seen, attn_mask=visible)
        out: torch.Tensor = x[rows, pooled] + last.ls_1(found.squeeze(1))
        return out + last.ls_2(last.mlp(last.ln_2(out)))


class TextTower:
    """The text side of an open_clip model on its device."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        dimension: int,
        device: torch.device,
        precision: str,
        token_budget: int,
    ) -> None:
        self.causal_tower = CausalTower.of(model)
        self.micro_batches = MicroBatches(token_budget)
        self._model = model
        self._tokenize = Tokenizer(tokenizer)
        self._dimension = dimension
        self._device = device
        self._bf16 = precision == "bf16"

    def encode(self, texts: Sequence[str]) -> TextEncoding:
        """Return the embeddings of `texts`, in their order; the same call gives the same bits.

        Raises:
            torch.OutOfMemoryError: if one caption alone doesn't fit on the device.
        """
        # Made outside inference mode, so that callers may use it in autograd or in place.
        embeddings = torch.zeros(len(texts), self._dimension, device=self._device)
        if not texts:
            return TextEncoding(embeddings, np.zeros(0, dtype=np.bool_))
        tokens, truncated = self._tokenize(texts)
        if self.causal_tower is None:
            pooled = None
            lengths = np.full(len(texts), tokens.shape[1], dtype=np.int64)
        else:
            pooled = self.causal_tower.pooled_positions(tokens)
            lengths = pooled.numpy() + 1

        def forward(rows: NDArray[np.int64], longest: int) -> torch.Tensor:
            index = torch.from_numpy(rows)
            part = tokens[index, :longest].to(self._device)
            if self.causal_tower is None or pooled is None:
                features: torch.Tensor = self._model.encode_text(part)
                return features
            return self.causal_tower.forward(part, pooled[index].to(self._device))

        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            for rows, part in self.micro_batches.run(lengths, forward):
                index = torch.from_numpy(rows).to(self._device)
                embeddings[index] = torch.nn.functional.normalize(part.float(), dim=-1)
        return TextEncoding(embeddings, truncated)
