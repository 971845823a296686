"""The synthesize flow: text to a dataset of substitute image embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.align.base import Aligner
from pipeline.align.registry import load_aligner
from pipeline.cluster.corpora import (
    embedding_corpus,
    encoder_options,
    over_long,
    plan_corpus,
    stored_embeddings,
)
from pipeline.cluster.dataset_flow import DatasetRequest, FlowReport, write_dataset
from pipeline.cluster.encode import encode_side
from pipeline.cluster.encoder_description import described_encoder, is_by_encoder_of_now
from pipeline.cluster.fit import FitSide, aligner_path, calibrate, encoder_of, existing_aligner
from pipeline.cluster.outputs import output
from pipeline.cluster.sources import source_corpus
from pipeline.config import RunConfig
from pipeline.names import Names
from pipeline.report.console import Reporter
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus
from pipeline.storage.manifest import UNIT_ROWS
from pipeline.storage.planning import Plan
from pipeline.storage.slices import combined

CALIBRATED_FROM = "calibrated_from"
"""Where an aligner calibrated on a corpus, and what it made, name the aligner it was before."""


def synthesize(
    config: RunConfig,
    reporter: Reporter,
    *,
    stored: bool = False,
    drift: Mapping[str, Any] | None = None,
) -> FlowReport:
    """Write the dataset of substitutes of the text side with an existing aligner.

    Captions are encoded and corrected in one actor; embeddings given, or those that the encode
    flow stored of this very corpus, are corrected alone. `calibration: exact` first measures mu-hat
    over this corpus, unless the aligner's was. `stored` says that encode has just run, so that the
    captions need not be read again to find out. `drift` goes into the manifest.

    Raises:
        ValueError: when the aligner or the text cannot be used, or they do not fit each other.
    """
    path = aligner_path(config)
    if not locations.exists(locations.join(path, "config.json")):
        raise ValueError(
            f"there is no aligner at {locations.redact_url(path)}; run `anisoalign fit` with this "
            "configuration first, or set aligner.path"
        )
    aligner = load_aligner(path)
    exact = config.calibration == "exact" and aligner.calibrates
    corpus = source_corpus(config, "text", reporter)
    if stored:
        corpus = embedding_corpus(config, "text", reporter)
    plan = plan_corpus(config, corpus, corpus.name, reporter)
    if not corpus.holds_embeddings:
        found = stored_embeddings(config, corpus, plan)
        if found is not None and not is_by_encoder_of_now(config, found):
            found = None
        if found is None and exact:
            # mu-hat needs a look at every embedding before the first is written: store them.
            encode_side(config, "text", reporter)
            found = embedding_corpus(config, "text", reporter)
        if found is not None:
            plan = plan_corpus(config, found, f"{found.name} embeddings", reporter)
            corpus = found
    encoder = _encoder_of_text(config, corpus)
    width = plan.dimension if corpus.holds_embeddings else encoder["dimension"]
    check_encoder(aligner, path, encoder, width, config.names)
    if exact and aligner.provenance.get("calibration_digest") != plan.digest:
        path = _calibrated(config, aligner, corpus, plan, reporter)
        aligner = load_aligner(path)
    return _write(config, aligner, path, corpus, plan, encoder, drift, reporter)


def _encoder_of_text(config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """Return the encoder that made the text's embeddings, or that is going to."""
    if corpus.holds_embeddings:
        return encoder_of(corpus)
    return described_encoder(config)


def check_encoder(
    aligner: Aligner, path: str, encoder: Mapping[str, Any], width: int | None, names: Names
) -> None:
    """Raise ValueError for a source of another width or encoder than the aligner was fitted on."""
    fitted_with = aligner.provenance.get("encoder", {})
    known = {encoder["fingerprint"], fitted_with.get("fingerprint", "")} - {""}
    if width != aligner.dimension or len(known) > 1:
        raise ValueError(
            f"the aligner at {locations.redact_url(path)} was fitted on {aligner.dimension}-wide "
            f"embeddings of {fitted_with.get('model', 'an unknown encoder')}; the "
            f"{names.source}'s are {width}-wide, of {encoder['model']}; use the same encoder for "
            "both"
        )


def _write(
    config: RunConfig,
    aligner: Aligner,
    path: str,
    corpus: Corpus,
    plan: Plan,
    encoder: Mapping[str, Any],
    drift: Mapping[str, Any] | None,
    reporter: Reporter,
) -> FlowReport:
    embed: dict[str, Any] = {"modality": "text", "aligner": path}
    if not corpus.holds_embeddings:
        embed["encoder"] = encoder_options(config)
        embed["embeddings_dtype"] = config.output.embeddings_dtype
        embed.update(over_long(config, "text"))
    assert aligner.fingerprint is not None
    description: dict[str, Any] = {"method": aligner.method, "fingerprint": aligner.fingerprint}
    if CALIBRATED_FROM in aligner.provenance:
        description[CALIBRATED_FROM] = aligner.provenance[CALIBRATED_FROM]
    if not aligner.unit_rows:
        description[UNIT_ROWS] = False
    request = DatasetRequest(
        name="synthesizing",
        corpus=corpus,
        plan=plan,
        root=output(config, "dataset"),
        kind="substitutes",
        dtype=config.output.dtype,
        dimension=aligner.dimension,
        embed=embed,
        fingerprint=combined(
            "synthesize",
            SCHEMA_VERSION,
            encoder["fingerprint"],
            encoder.get("precision", ""),
            aligner.fingerprint,
            embed.get("embeddings_dtype", ""),
            config.output.dtype,
            *(f"{what}_truncated" for what in [embed.get("over_long")] if what),
        ),
        encoder=encoder,
        aligner=description,
        drift=drift,
    )
    return write_dataset(config, request, reporter)


def _calibrated(
    config: RunConfig, aligner: Aligner, corpus: Corpus, plan: Plan, reporter: Reporter
) -> str:
    """Write the aligner with mu-hat of this corpus beside the run; returns its URL."""
    path = output(config, "aligner-calibrated")
    wanted = {"calibration_digest": plan.digest, CALIBRATED_FROM: aligner.fingerprint}
    there = existing_aligner(path)
    if there is not None and wanted.items() <= there.provenance.items():
        return path
    calibrate(aligner, FitSide("text", corpus, plan, encoder_of(corpus)), reporter)
    aligner.save(path, {**aligner.provenance, **wanted})
    return path
