"""The demo: the packaged world through a real run, then every method on held-out pairs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.align.registry import load_aligner
from pipeline.align.training import one_thread
from pipeline.cluster.corpora import demo_corpora, embedding_corpus, encoder_options, plan_corpus
from pipeline.cluster.fit import aligner_path
from pipeline.cluster.run import run, write_summary
from pipeline.config import DEMO_CAPTIONS, DEMO_IMAGES, RunConfig, apply_settings, parse_config
from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.pairs import Pairs
from pipeline.report.console import Reporter
from pipeline.schema import IMAGE, TEXT
from pipeline.stages.accumulate import read_embeddings

DEMO_SETTINGS: dict[str, Any] = {
    "seed": 0,
    "text": {"path": DEMO_CAPTIONS},
    "image": {"path": DEMO_IMAGES},
    "encoder": {"model": "demo"},
    "output": {"path": "runs/demo"},
    "units": {"rows_per_shard": 4096},
}
"""The demo's configuration, the same as configs/demo.yaml."""

_BASELINES = ("identity", "centroid", "realign", "anisoalign-init")


def demo_config(settings: tuple[str, ...] = ()) -> RunConfig:
    """Return the demo's configuration with `--set` settings laid over it."""
    return parse_config(apply_settings(DEMO_SETTINGS, settings))


def demo(config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Run the demo and measure the methods; returns what summary.json holds.

    The fitted aligner is that of the run; the others are fitted on the same embeddings. All are
    measured on pairs that no fit has seen.
    """
    summary = run(config, reporter)
    start = time.perf_counter()
    held_out = encode_pairs(config, reporter)
    fitting = Pairs(
        image=_stored_embeddings(config, "image", reporter),
        text=_stored_embeddings(config, "text", reporter),
    )
    reporter.say(
        f"measuring methods on {held_out.image.shape[0]:,} held-out pairs, fitted without pairs"
    )
    aligners = fit_methods(_BASELINES, fitting, config.align, config.seed)
    aligners[config.align.method] = load_aligner(aligner_path(config))
    summary["evaluation"] = compare(aligners, held_out, config.seed)
    summary["evaluation_seconds"] = time.perf_counter() - start
    write_summary(config, summary)
    return summary


def encode_pairs(config: RunConfig, reporter: Reporter) -> Pairs:
    """Encode the demo world's held-out pairs, in this process."""
    corpora = demo_corpora(config, reporter)
    images = pq.read_table(corpora.pairs_images, columns=[IMAGE]).column(IMAGE).to_pylist()
    lines = Path(corpora.pairs_captions).read_text(encoding="utf-8").splitlines()
    captions = [json.loads(line)[TEXT] for line in lines]
    encoder = encoder_options(config).build()
    with one_thread():  # as in the actors
        return Pairs(
            image=encoder.encode_images(images).embeddings.cpu(),
            text=encoder.encode_texts(captions).embeddings.cpu(),
        )


def _stored_embeddings(config: RunConfig, side: Any, reporter: Reporter) -> Tensor:
    corpus = embedding_corpus(config, side, reporter)
    plan = plan_corpus(config, corpus, f"{side} embeddings", reporter)
    assert plan.dimension is not None
    return torch.cat([read_embeddings(corpus, unit, plan.dimension) for unit in plan.units])
