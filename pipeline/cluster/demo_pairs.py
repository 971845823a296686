"""The held-out pairs of the packaged world, encoded."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import torch

from pipeline.align.training import one_thread
from pipeline.cluster.corpora import encoder_options
from pipeline.cluster.sources import demo_corpora
from pipeline.config import RunConfig
from pipeline.evaluation.pairs import Pairs
from pipeline.report.console import Reporter
from pipeline.schema import IMAGE, TEXT


def encode_pairs(config: RunConfig, reporter: Reporter) -> Pairs:
    """Encode the demo world's held-out pairs, in this process."""
    corpora = demo_corpora(config, reporter)
    images = pq.read_table(corpora.pairs_images, columns=[IMAGE]).column(IMAGE).to_pylist()
    lines = Path(corpora.pairs_captions).read_text(encoding="utf-8").splitlines()
    captions = [json.loads(line)[TEXT] for line in lines]
    encoder = encoder_options(config).build()
    with one_thread():  # as in the actors
        image, _ = encoder.encode_images(images)
        text, _ = encoder.encode_texts(captions)
    return Pairs(image=torch.as_tensor(image).cpu(), text=torch.as_tensor(text).cpu())
