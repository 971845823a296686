"""The encode flow: captions and images to datasets of embeddings."""

from __future__ import annotations

from pipeline.cluster.corpora import encoder_options, over_long, plan_corpus
from pipeline.cluster.dataset_flow import DatasetRequest, FlowReport, write_dataset
from pipeline.cluster.encoder_description import described_encoder
from pipeline.cluster.outputs import Side, embeddings_root
from pipeline.cluster.sources import is_named, source_corpus
from pipeline.config import ConfigError, RunConfig
from pipeline.report.console import Reporter
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.slices import combined


def encode_side(config: RunConfig, side: Side, reporter: Reporter) -> FlowReport | None:
    """Encode one side; returns None when it carries embeddings already.

    Raises:
        ValueError: when its input or the encoder cannot be used.
    """
    corpus = source_corpus(config, side, reporter)
    if corpus.holds_embeddings:
        reporter.say(f"{config.names.key(side, 'path')} holds embeddings; nothing to encode")
        return None
    options = encoder_options(config)
    encoder = described_encoder(config)
    dtype = config.output.embeddings_dtype
    request = DatasetRequest(
        name=f"encoding {corpus.name}",
        corpus=corpus,
        plan=plan_corpus(config, corpus, corpus.name, reporter),
        root=embeddings_root(config, side),
        kind="text-embeddings" if side == "text" else "image-embeddings",
        dtype=dtype,
        dimension=encoder["dimension"],
        embed={"modality": side, "encoder": options, **over_long(config, side)},
        fingerprint=combined(
            "encode",
            SCHEMA_VERSION,
            encoder["fingerprint"],
            encoder.get("precision", ""),
            dtype,
            *(f"{what}_truncated" for what in over_long(config, side).values()),
        ),
        encoder=encoder,
    )
    return write_dataset(config, request, reporter)


def encode(config: RunConfig, reporter: Reporter) -> list[FlowReport]:
    """Encode every side whose path is set and that carries no embeddings.

    Raises:
        ConfigError: when neither `text.path` nor `image.path` is set.
        ValueError: when an input or the encoder cannot be used.
    """
    sides: list[Side] = []
    if is_named(config, "text"):
        sides.append("text")
    if is_named(config, "image"):
        sides.append("image")
    if not sides:
        raise ConfigError("neither text.path nor image.path is set; give one with --set")
    if len(sides) > 1:
        _check_widths(config, reporter)
    reports = [encode_side(config, side, reporter) for side in sides]
    return [report for report in reports if report is not None]


def _check_widths(config: RunConfig, reporter: Reporter) -> None:
    """Raise ValueError if embeddings given for one side do not fit the encoder of the other.

    Before the other is encoded, which may take days.
    """
    both: tuple[Side, Side] = ("text", "image")
    corpora = {side: source_corpus(config, side, reporter) for side in both}
    given = [side for side in both if corpora[side].holds_embeddings]
    if len(given) != 1:
        return
    corpus = corpora[given[0]]
    width = plan_corpus(config, corpus, f"{corpus.name} embeddings", reporter).dimension
    encoder = described_encoder(config)
    if width != encoder["dimension"]:
        raise ValueError(
            f"the {corpus.name} embeddings of {corpus.shown} have width {width}, the encoder "
            f"{config.encoder.model} gives {encoder['dimension']}; both sides must come from one "
            "encoder"
        )
