"""How many images a second are encoded, against a bare loop that decodes one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, in_turns, step_counter
from pipeline.demo.corpora import write_demo_corpora
from pipeline.encoders.image_tower import DECODING_THREADS
from pipeline.encoders.loading import find_source, load
from pipeline.encoders.open_clip_encoder import OpenClipEncoder
from pipeline.schema import IMAGE

REPEATS = 5
_BATCH = 64
_SIZE = (640, 480)


@dataclass(frozen=True)
class EncodeImageReport:
    """Images a second of ours and of the bare loop, and the largest difference between them."""

    model: str
    images: int
    rates: Rates
    error: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark."""
        return {
            "name": "encode-image",
            "unit": "images/s",
            **self.rates.to_mapping(),
            "machine": machine_facts(),
            "model": self.model,
            "images": self.images,
            "error": self.error,
        }


def run_encode_image(
    folder: Path,
    *,
    model: str,
    pretrained: str | None,
    rows: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeImageReport:
    """Encode JPEG files of 640 x 480, drawn from the demo world, by both ways in turns."""
    done = step_counter(progress, REPEATS)

    images = _photographs(folder, rows, seed)
    encoder = OpenClipEncoder(model, pretrained, image_batch=_BATCH, towers=("image",))
    bare = BareLoop(model, pretrained, encoder.device)
    error = (encoder.encode_images(images).embeddings - bare(images)).abs().max()
    rates = in_turns(
        (rows, lambda: encoder.encode_images(images).embeddings.cpu()),
        (rows, lambda: bare(images).cpu()),
        REPEATS,
        done,
    )
    return EncodeImageReport(model, rows, rates, float(error))


def _photographs(folder: Path, rows: int, seed: int) -> list[bytes]:
    """Return JPEG files of the size of common photographs."""
    drawn = write_demo_corpora(folder, captions=1, images=rows, pairs=1, seed=seed)
    found = []
    for content in pq.read_table(drawn.images, columns=[IMAGE]).column(IMAGE).to_pylist():
        file = BytesIO()
        Image.open(BytesIO(content)).convert("RGB").resize(_SIZE).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


class BareLoop:
    """Threads decode a batch while the one before it is encoded, and nothing else is looked at."""

    def __init__(self, model: str, pretrained: str | None, device: torch.device) -> None:
        """Load the model."""
        loaded = load(find_source(model, pretrained))
        self._model, self._preprocess = loaded.model.to(device), loaded.preprocess
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[bytes]) -> Tensor:
        """Return the embeddings (n, d), unit rows."""
        found = []
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        with ThreadPoolExecutor(DECODING_THREADS) as threads:
            ahead = [threads.submit(self._decode, one) for one in batches[0]]
            for number in range(len(batches)):
                pixels = torch.stack([one.result() for one in ahead])
                following = batches[number + 1] if number + 1 < len(batches) else []
                ahead = [threads.submit(self._decode, one) for one in following]
                features = self._model.encode_image(pixels.to(self._device))
                found.append(torch.nn.functional.normalize(features, dim=-1))
        return torch.cat(found)

    def _decode(self, content: bytes) -> Tensor:
        return self._preprocess(Image.open(BytesIO(content)).convert("RGB"))
