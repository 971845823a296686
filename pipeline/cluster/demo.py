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
from pipeline.cluster.corpora import (
    demo_corpora,
    embedding_corpus,
    encoder_options,
    output,
    plan_corpus,
)
from pipeline.cluster.fit import aligner_path
from pipeline.cluster.run import run
from pipeline.config import (
    DEMO_CAPTIONS,
    DEMO_IMAGES,
    ConfigError,
    RunConfig,
    apply_settings,
    parse_config,
)
from pipeline.evaluation import DEFAULT_METHODS
from pipeline.evaluation.geometry import evaluate_geometry, separate_rounds
from pipeline.evaluation.pairs import Clouds, Pairs
from pipeline.evaluation.results import write_results
from pipeline.geometry.neighbours import NEIGHBOURS
from pipeline.report.console import Reporter
from pipeline.report.page import write_report
from pipeline.schema import IMAGE, TEXT
from pipeline.stages.accumulate import read_embeddings
from pipeline.storage import locations

DEMO_SETTINGS: dict[str, Any] = {
    "seed": 0,
    "text": {"path": DEMO_CAPTIONS},
    "image": {"path": DEMO_IMAGES},
    "encoder": {"model": "demo"},
    "output": {"path": "runs/demo"},
    "units": {"rows_per_shard": 4096},
}
"""The demo's configuration, the same as configs/demo.yaml."""

_FRONTIER_RANKS = (8, 32, 64)
_FRONTIER_DISPLACEMENTS = (0.2, 0.5, 1.0)
"""Fewer points than elsewhere, so that the demo stays short."""


def demo_config(settings: tuple[str, ...] = ()) -> RunConfig:
    """Return the demo's configuration with `--set` settings laid over it.

    Raises:
        ConfigError: for a wrong setting, or too few pairs to measure on.
    """
    config = parse_config(apply_settings(DEMO_SETTINGS, settings))
    if config.demo.pairs <= NEIGHBOURS:
        raise ConfigError(
            f"demo.pairs is {config.demo.pairs}; measuring needs at least {NEIGHBOURS + 1}"
        )
    return config


def demo(config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Run the demo, measure the methods and write the report; returns a summary of it all.

    The aligner of the run is measured as it is; the other methods are fitted on the same
    embeddings. All are measured on pairs that no fit has seen. pairs.npz and fitting.npz are
    what `anisoalign evaluate geometry` needs to do so again.
    """
    summary = run(config, reporter)
    start = time.perf_counter()
    held_out = encode_pairs(config, reporter)
    fitting = Clouds(
        image=_stored_embeddings(config, "image", reporter),
        text=_stored_embeddings(config, "text", reporter),
    )
    for name, clouds in (("pairs.npz", held_out), ("fitting.npz", fitting)):
        locations.write_bytes(output(config, name), clouds.to_bytes())
    reporter.say(
        f"measuring methods on {held_out.image.shape[0]:,} held-out pairs, fitted without pairs"
    )
    own = load_aligner(aligner_path(config))
    rounds = separate_rounds(fitting, held_out, config.seed)
    found = evaluate_geometry(
        rounds,
        list(dict.fromkeys((*DEFAULT_METHODS, own.method))),
        config.align,
        reporter,
        fitted={own.method: own},
        with_frontier=True,
        ranks=_FRONTIER_RANKS,
        displacements=_FRONTIER_DISPLACEMENTS,
    )
    folder = Path(output(config, "report").removeprefix("file://"))
    write_results(folder, found, rounds)
    page = write_report(folder, found.metrics, found.curves, "Methods on the packaged world")
    summary["evaluation"] = found.metrics
    summary["evaluation_seconds"] = time.perf_counter() - start
    summary["report"] = str(page)
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
