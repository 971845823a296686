"""The encoder that the pipeline uses: an open_clip model by name, on a device, in a precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from pipeline.encoders.devices import find_device
from pipeline.encoders.image_tower import ImageEncoding, ImageTower
from pipeline.encoders.loading import find_source, keep_towers, load
from pipeline.encoders.text_tower import TextEncoding, TextTower

PRECISIONS = ("fp32", "bf16")
TOWERS = ("text", "image")


class OpenClipEncoder:
    """Captions and images to embeddings in the joint space of one open_clip model.

    Args:
        model: an open_clip architecture (`ViT-B-32`), `local-dir:/path` (a folder with
            `open_clip_config.json` and `open_clip_model.safetensors`), or `demo`, the encoder
            shipped with the package.
        pretrained: for an architecture, open_clip's tag of weights, a weights file, or `random`:
            untrained weights, the same each time, for tests and benchmarks only.
        precision: `fp32`, or `bf16` for autocast to bfloat16. Embeddings are float32 either way.
        compile: whether the towers' forward goes through `torch.compile`; the first captions and
            images are encoded at once then, so that what is wrong with it is found here.
        device: a torch device, or `auto`: the first GPU if there is one.
        token_budget: the most tokens, padding included, in one forward of the text tower.
        image_batch: the most images in one forward of the image tower.
        towers: which of `text` and `image` to keep; the other's memory is given back.

    When the device runs out of memory, `token_budget` or `image_batch` is halved, down to one row,
    and stays so for later calls.

    Raises:
        ValueError: if an argument is not among these, or the model can't be found or loaded.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        precision: str = "fp32",
        compile: bool = False,
        device: str = "auto",
        token_budget: int = 16384,
        image_batch: int = 64,
        towers: Sequence[str] = TOWERS,
    ) -> None:
        _check_arguments(precision, token_budget, image_batch, towers)
        self.device = find_device(device)
        self._loaded = load(find_source(model, pretrained))
        self._model, self._pretrained, self._precision = model, pretrained, precision
        self._text_tower: TextTower | None = None
        self._image_tower: ImageTower | None = None
        keep_towers(self._loaded.model, tuple(towers))
        modules = self._loaded.model.to(self.device)
        if "text" in towers:
            self._text_tower = TextTower(
                modules,
                self._loaded.tokenizer,
                dimension=self.dimension,
                device=self.device,
                precision=precision,
                token_budget=token_budget,
                compile=compile,
            )
        if "image" in towers:
            size = self._loaded.preprocess_config["size"]
            self._image_tower = ImageTower(
                modules,
                self._loaded.preprocess,
                shortest_edge=size if isinstance(size, int) else max(size),
                dimension=self.dimension,
                device=self.device,
                precision=precision,
                image_batch=image_batch,
                compile=compile,
            )
        if compile:
            self._compile()

    @property
    def dimension(self) -> int:
        """Length d of an embedding."""
        return int(self._loaded.source.config["embed_dim"])

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the encoder: sha256 (hex) of config, preprocessing, tokenizer and weights.

        It doesn't depend on where the files lie, on the towers kept, the device or the precision.
        The first access reads the weights' file.
        """
        return self._loaded.fingerprint()

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of the encoder, JSON-able; holds the fingerprint."""
        return {
            "model": self._model,
            "pretrained": self._pretrained,
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "context_length": int(self._loaded.tokenizer.context_length),
            "precision": self._precision,
        }

    def encode_texts(self, texts: Sequence[str]) -> TextEncoding:
        """Return the embeddings `(n, d)` of `texts` and which were cut to the context, `(n,)`.

        Raises:
            ValueError: if the encoder was made without its text tower.
            torch.OutOfMemoryError: if one caption alone doesn't fit on the device.
        """
        if self._text_tower is None:
            raise ValueError(f"encoder {self._model!r} was made without its text tower")
        return self._text_tower.encode(texts)

    def encode_images(self, images: Sequence[bytes]) -> ImageEncoding:
        """Return the embeddings `(n, d)` of encoded images and which are undecodable, `(n,)`.

        Raises:
            ValueError: if the encoder was made without its image tower.
            torch.OutOfMemoryError: if one image alone doesn't fit on the device.
        """
        if self._image_tower is None:
            raise ValueError(f"encoder {self._model!r} was made without its image tower")
        return self._image_tower.encode(images)

    def _compile(self) -> None:
        """Encode two of each, since it is the first forward that compiles."""
        blank = BytesIO()
        Image.new("RGB", (8, 8)).save(blank, format="PNG")
        try:
            if self._text_tower is not None:
                self._text_tower.encode(["a caption"] * 2)
            if self._image_tower is not None:
                self._image_tower.encode([blank.getvalue()] * 2)
        except torch.OutOfMemoryError:
            raise
        # Of the compilers that torch calls, each fails in its own way.
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"encoder.compile: torch.compile failed on {self._model} ({reason}); it needs a "
                "C++ compiler; set encoder.compile to false to go without"
            ) from error


def _check_arguments(
    precision: str, token_budget: int, image_batch: int, towers: Sequence[str]
) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"encoder.precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    for name, value in (("token_budget", token_budget), ("image_batch", image_batch)):
        if value < 1:
            raise ValueError(f"encoder.{name}: {value} is not a positive number")
    if not towers or set(towers) - set(TOWERS):
        raise ValueError(f"towers: {list(towers)} is not a choice of {', '.join(TOWERS)}")
