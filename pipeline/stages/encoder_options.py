"""How to make the encoder in a worker: plain values, that need neither torch nor open_clip."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.encoders import CLASS

if TYPE_CHECKING:
    from pipeline.encoders import Encoder


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How to make the encoder in an actor; see `OpenClipEncoder` and `ClassEncoder`.

    `options` is the JSON of a mapping: workers are told apart by their options, so these are
    hashable.
    """

    model: str
    pretrained: str | None = None
    precision: str = "fp32"
    compile: bool = False
    device: str = "auto"
    token_budget: int = 16384
    image_batch: int = 64
    options: str = "{}"

    @property
    def is_class(self) -> bool:
        """Whether it is a class outside the package, named by its import path."""
        return self.model.startswith(CLASS)

    @property
    def said(self) -> dict[str, Any]:
        """What manifests say of the encoder that these options decide, by name."""
        if self.is_class:
            return {"class": self.model, "options": json.loads(self.options)}
        return {
            "class": None,
            "model": self.model,
            "pretrained": self.pretrained,
            "precision": self.precision,
        }

    def build(self, *towers: Literal["text", "image"]) -> Encoder:
        """Load the encoder; raises ValueError when there is no such model."""
        # Here, not above: open_clip takes seconds to import and correcting alone does not need it.
        if self.is_class:
            from pipeline.encoders.class_encoder import ClassEncoder

            return ClassEncoder(self.model, json.loads(self.options), device=self.device)
        from pipeline.encoders import OpenClipEncoder

        return OpenClipEncoder(
            self.model,
            self.pretrained,
            precision=self.precision,
            compile=self.compile,
            device=self.device,
            token_budget=self.token_budget,
            image_batch=self.image_batch,
            towers=towers or ("text", "image"),
        )
