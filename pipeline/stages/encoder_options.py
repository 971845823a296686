"""How to make the encoder in a worker: plain values, that need neither torch nor open_clip."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.encoders import OpenClipEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How to make the encoder in an actor; see `OpenClipEncoder`."""

    model: str
    pretrained: str | None = None
    precision: str = "fp32"
    token_budget: int = 16384
    image_batch: int = 64

    def build(self, *towers: Literal["text", "image"]) -> OpenClipEncoder:
        """Load the encoder; raises ValueError when there is no such model."""
        # Here, not above: open_clip takes seconds to import and correcting alone does not need it.
        from pipeline.encoders import OpenClipEncoder

        return OpenClipEncoder(**asdict(self), towers=towers or ("text", "image"))
