"""Encoded image files to embeddings, through open_clip's own preprocessing."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.encoders.compiling import Forward, compiled
from pipeline.encoders.micro_batches import MicroBatches

# PIL would also try formats that start other programs (EPS runs Ghostscript); these don't.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
DECODING_THREADS = min(8, os.cpu_count() or 1)
MOST_PIXELS = 89_478_485
"""An image of more is refused by its header, before its pixels take memory (256 MiB as RGB).

PIL's own limit, at which PIL only warns: it raises an error at twice as many.
"""


# What it warns of is refused below.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageEncoding(NamedTuple):
    """Embeddings `(n, d)`, float32 of unit length or zero, and which are undecodable, `(n,)`."""

    embeddings: torch.Tensor
    undecodable: NDArray[np.bool_]


def decode(
    content: bytes, preprocess: Callable[[Image.Image], torch.Tensor], shortest_edge: int
) -> torch.Tensor | None:
    """Return the pixels `(3, height, width)` that the tower wants, or None if undecodable.

    An image is undecodable when PIL can't read it in one of FORMATS, when it is cut short, or when
    it has, or would have once its shortest edge is scaled, more than MOST_PIXELS pixels. Of an
    animation the first frame is taken; orientation is what is stored, as open_clip has it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            # Preprocessing scales the shortest edge and crops later: a thin strip explodes there.
            scaled = shortest_edge**2 * max(image.size) / min(image.size)
            if max(image.width * image.height, scaled) > MOST_PIXELS:
                return None
            return preprocess(image.convert("RGB"))
    # Broken files make PIL's decoders raise nearly anything: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, IndexError, DecompressionBombError.
    except Exception:
        return None


class ImageTower:
    """The image side of an open_clip model on its device."""

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Image.Image], torch.Tensor],
        *,
        shortest_edge: int,
        dimension: int,
        device: torch.device,
        precision: str,
        image_batch: int,
        compile: bool,
    ) -> None:
        self.micro_batches = MicroBatches(image_batch)
        encode: Forward = model.encode_image
        self._forward = compiled(encode, varying=(0,)) if compile else encode
        self._preprocess = preprocess
        self._shortest_edge = shortest_edge
        self._dimension = dimension
        self._device = device
        self._bf16 = precision == "bf16"
        self._image_batch = image_batch

    def encode(self, images: Sequence[bytes]) -> ImageEncoding:
        """Return the embeddings of `images`, in their order, zero where undecodable.

        One batch is decoded by threads while the one before it runs on the device.

        Raises:
            torch.OutOfMemoryError: if one image alone doesn't fit on the device.
        """
        # Made outside inference mode, so that callers may use it in autograd or in place.
        embeddings = torch.zeros(len(images), self._dimension, device=self._device)
        undecodable = np.zeros(len(images), dtype=np.bool_)
        starts = range(0, len(images), self._image_batch)
        with ThreadPoolExecutor(DECODING_THREADS) as threads:

            def submit(start: int) -> list[Future[torch.Tensor | None]]:
                batch = images[start : start + self._image_batch]
                return [
                    threads.submit(decode, content, self._preprocess, self._shortest_edge)
                    for content in batch
                ]

            ahead = submit(0)
            for start in starts:
                decoded = [future.result() for future in ahead]
                ahead = submit(start + self._image_batch)
                bad = [pixels is None for pixels in decoded]
                undecodable[start : start + len(bad)] = bad
                good = [pixels for pixels in decoded if pixels is not None]
                if good:
                    positions = start + np.flatnonzero(~np.array(bad))
                    self._encode_decoded(torch.stack(good), positions, embeddings)
        return ImageEncoding(embeddings, undecodable)

    def _encode_decoded(
        self, pixels: torch.Tensor, positions: NDArray[np.int64], embeddings: torch.Tensor
    ) -> None:
        """Write the embeddings of `pixels` `(m, 3, height, width)` at their positions `(m,)`."""

        def forward(rows: NDArray[np.int64], _longest: int) -> torch.Tensor:
            return self._forward(pixels[torch.from_numpy(rows)].to(self._device))

        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
        ):
            ones = np.ones(len(pixels), dtype=np.int64)
            for rows, part in self.micro_batches.run(ones, forward):
                index = torch.from_numpy(positions[rows]).to(self._device)
                embeddings[index] = torch.nn.functional.normalize(part.float(), dim=-1)
