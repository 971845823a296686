"""Captions to embeddings, in micro-batches of captions of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoders.compiling import compiled
from pipeline.encoders.micro_batches import MicroBatches
from pipeline.encoders.text_forwards import text_forward
from pipeline.encoders.tokens import Tokenizer


class TextEncoding(NamedTuple):
    """Embeddings `(n, d)`, float32 of unit length, and which captions were cut, `(n,)`."""

    embeddings: torch.Tensor
    truncated: NDArray[np.bool_]


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
        compile: bool,
    ) -> None:
        self.forward = text_forward(model)
        self.micro_batches = MicroBatches(token_budget)
        self._tokenize = Tokenizer(tokenizer)
        self._dimension = dimension
        self._device = device
        self._bf16 = precision == "bf16"
        self._compiled = compiled(self.forward.embed, varying=(0, 1)) if compile else None

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
        lengths = self.forward.lengths(tokens).numpy()
        embed = self._compiled or self.forward.embed

        def forward(rows: NDArray[np.int64], longest: int) -> torch.Tensor:
            return embed(tokens[torch.from_numpy(rows), :longest].to(self._device))

        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            for rows, part in self.micro_batches.run(lengths, forward):
                index = torch.from_numpy(rows).to(self._device)
                embeddings[index] = torch.nn.functional.normalize(part.float(), dim=-1)
        return TextEncoding(embeddings, truncated)
