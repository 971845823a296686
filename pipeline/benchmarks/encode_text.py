"""How many captions a second are encoded, against the plain loop over full contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, in_turns, step_counter
from pipeline.demo.corpora import write_demo_corpora
from pipeline.encoders.files import DEMO, LOCAL_DIR
from pipeline.encoders.loading import RANDOM, find_source, load
from pipeline.encoders.open_clip_encoder import OpenClipEncoder
from pipeline.schema import REJECT, TEXT
from pipeline.storage.corpus import Corpus
from pipeline.storage.planning import plan
from pipeline.storage.reading import read_unit

REPEATS = 3
_PLAIN_BATCH = 64
_PLAIN_SHARE = 8
"""The plain loop is timed on every eighth caption, since it takes so much longer."""


@dataclass(frozen=True)
class EncodeTextReport:
    """Captions a second of ours and of the plain loop, and the largest difference between them."""

    model: str
    captions: int
    rates: Rates
    error: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark."""
        return {
            "name": "encode-text",
            "unit": "captions/s",
            **self.rates.to_mapping(),
            "machine": machine_facts(),
            "model": self.model,
            "captions": self.captions,
            "error": self.error,
        }


def run_encode_text(
    captions: Sequence[str],
    *,
    model: str,
    pretrained: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeTextReport:
    """Encode captions by both ways in turns, in fp32 on the CPU or the first GPU."""
    done = step_counter(progress, REPEATS)

    encoder = OpenClipEncoder(model, pretrained, towers=("text",))
    plain = PlainLoop(model, pretrained, encoder.device)
    few = list(captions[::_PLAIN_SHARE])
    error = (encoder.encode_texts(few).embeddings - plain(few)).abs().max()
    rates = in_turns(
        (len(captions), lambda: encoder.encode_texts(captions).embeddings.cpu()),
        (len(few), lambda: plain(few).cpu()),
        REPEATS,
        done,
    )
    return EncodeTextReport(model, len(captions), rates, float(error))


class PlainLoop:
    """What open_clip's own documentation shows: `model.encode_text(tokenizer(batch))`."""

    def __init__(self, model: str, pretrained: str | None, device: torch.device) -> None:
        """Load the model."""
        loaded = load(find_source(model, pretrained))
        self._model, self._tokenizer = loaded.model.to(device), loaded.tokenizer
        self._device = device

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings (n, d), unit rows."""
        found = []
        for start in range(0, len(captions), _PLAIN_BATCH):
            tokens = self._tokenizer(list(captions[start : start + _PLAIN_BATCH]))
            features = self._model.encode_text(tokens.to(self._device))
            found.append(torch.nn.functional.normalize(features, dim=-1))
        return torch.cat(found)


def weights(model: str, pretrained: str | None) -> str | None:
    """Return the weights asked for, else random ones, unless the model brings its own."""
    if pretrained is None and model != DEMO and not model.startswith(LOCAL_DIR):
        return RANDOM
    return pretrained


def read_captions(path: str | None, count: int, folder: Path) -> list[str]:
    """Return captions from all over a corpus, at most `count`; without one, those of the demo."""
    if path is None:
        drawn = write_demo_corpora(folder, captions=count, images=1, pairs=1)
        path = str(drawn.captions)
    corpus = Corpus(path=path, modality="text")
    found: list[str] = []
    for unit in plan(corpus, 32_768).units:
        table = read_unit(corpus, unit)
        found += table.filter(pc.is_null(table.column(REJECT))).column(TEXT).to_pylist()
    return found[:: -(-len(found) // count)]
