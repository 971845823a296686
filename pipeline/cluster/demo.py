"""The demo: the packaged world through a real run, then every method on held-out pairs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.align.registry import load_aligner
from pipeline.cluster.corpora import embedding_corpus, plan_corpus
from pipeline.cluster.demo_pairs import encode_pairs
from pipeline.cluster.downstream import evaluate_downstream
from pipeline.cluster.fit import aligner_path
from pipeline.cluster.outputs import output
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
from pipeline.evaluation.pairs import Clouds
from pipeline.evaluation.results import write_results
from pipeline.geometry.neighbours import NEIGHBOURS
from pipeline.report.console import Reporter
from pipeline.report.page import write_report
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


def demo(config: RunConfig, reporter: Reporter, *, downstream: bool = False) -> dict[str, Any]:
    """Run the demo, measure the methods and write the report; returns a summary of it all.

    With `downstream` the report has a part on what models trained on substitutes know of images.

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
    learnt = None
    if downstream:
        learnt = summary["downstream"] = evaluate_downstream(config, reporter)
    title = "Methods on the packaged world"
    page = write_report(folder, found.metrics, found.curves, title, learnt)
    summary["evaluation"] = found.metrics
    summary["evaluation_seconds"] = time.perf_counter() - start
    summary["report"] = str(page)
    return summary


def _stored_embeddings(config: RunConfig, side: Any, reporter: Reporter) -> Tensor:
    corpus = embedding_corpus(config, side, reporter)
    plan = plan_corpus(config, corpus, f"{side} embeddings", reporter)
    assert plan.dimension is not None
    return torch.cat([read_embeddings(corpus, unit, plan.dimension) for unit in plan.units])
