"""From the configuration's two sides to corpora on storage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.config import DEMO_CAPTIONS, DEMO_IMAGES, ConfigError, RunConfig
from pipeline.demo.corpora import DemoCorpora, write_demo_corpora
from pipeline.report.console import Reporter
from pipeline.stages.embed import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus
from pipeline.storage.manifest import open_manifest
from pipeline.storage.planning import Plan, plan

Side = Literal["text", "image"]


def encoder_options(config: RunConfig) -> EncoderOptions:
    """Return how actors make the encoder."""
    section = config.encoder
    return EncoderOptions(
        model=section.model,
        pretrained=section.pretrained,
        precision=section.precision,
        token_budget=section.token_budget,
        image_batch=section.image_batch,
    )


def output(config: RunConfig, *parts: str) -> str:
    """Return a URL inside the run's output."""
    return locations.join(locations.absolute(config.output.path), *parts)


def embeddings_root(config: RunConfig, side: Side) -> str:
    """Return where the encoded embeddings of a side are written."""
    return output(config, "embeddings", side)


def demo_corpora(config: RunConfig, reporter: Reporter) -> DemoCorpora:
    """Write the packaged world's corpora beside the output, or find them there.

    Raises:
        ConfigError: when the output is not a local folder.
    """
    root = output(config, "corpora")
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            "demo: paths are drawn to local files; give output.path a local folder, or name your "
            "own text.path and image.path"
        )
    locations.check_writable(root)
    with reporter.counted("drawing the demo world") as show:
        return write_demo_corpora(
            Path(root.removeprefix("file://")), seed=config.seed, progress=show
        )


def source_corpus(config: RunConfig, side: Side, reporter: Reporter) -> Corpus:
    """Return the corpus of a side as the user named it.

    Raises:
        ConfigError: when no path is set, or the other side's demo corpus is named.
    """
    section = config.text if side == "text" else config.image
    path = section.path
    if path is None:
        example = "captions.txt" if side == "text" else "images.parquet"
        raise ConfigError(f"{side}.path is not set; give it with --set {side}.path={example}")
    if path in (DEMO_CAPTIONS, DEMO_IMAGES):
        wanted = DEMO_CAPTIONS if side == "text" else DEMO_IMAGES
        if path != wanted:
            raise ConfigError(f"{side}.path is {path}; the demo's {side} side is {wanted}")
        corpora = demo_corpora(config, reporter)
        path = str(corpora.captions if side == "text" else corpora.images)
    elif path.startswith("demo:"):
        raise ConfigError(f"{side}.path is {path}; known are {DEMO_CAPTIONS} and {DEMO_IMAGES}")
    if side == "text":
        return Corpus(
            path=path,
            modality="text",
            format=config.text.format,
            id_column=config.text.id_column,
            text_column=config.text.text_column,
            embedding_column=config.text.embedding_column,
            ids_path=config.text.ids_path,
            passed_through=config.text.passed_through,
        )
    return Corpus(
        path=path,
        modality="image",
        format=config.image.format,
        id_column=config.image.id_column,
        image_column=config.image.image_column,
        embedding_column=config.image.embedding_column,
        ids_path=config.image.ids_path,
    )


def embedding_corpus(config: RunConfig, side: Side, reporter: Reporter) -> Corpus:
    """Return the corpus that carries a side's embeddings: the user's own, or the encoded ones.

    Raises:
        ValueError: when the side has to be encoded first.
    """
    section = config.text if side == "text" else config.image
    if section.path is not None and not section.path.startswith("demo:"):
        own = source_corpus(config, side, reporter)
        if own.holds_embeddings:
            return own
    root = embeddings_root(config, side)
    if not locations.exists(locations.join(root, "current.json")):
        raise ValueError(
            f"there are no {side} embeddings at {locations.redact_url(root)}; run `anisoalign "
            "encode` with this configuration first"
        )
    _check_stored(config, side, root)
    passed = config.text.passed_through if side == "text" else ()
    return Corpus(path=root, modality=side, format="dataset", passed_through=passed)


def _check_stored(config: RunConfig, side: Side, root: str) -> None:
    """Refuse stored embeddings of another input or encoder than the configuration names."""
    manifest = open_manifest(root)
    section = config.text if side == "text" else config.image
    before = manifest.config[side]["path"]
    wanted = None if section.path is None else locations.redact_url(section.path)
    encoder = (manifest.config["encoder"]["model"], manifest.config["encoder"]["pretrained"])
    if wanted not in (None, before) or encoder != (config.encoder.model, config.encoder.pretrained):
        raise ValueError(
            f"the {side} embeddings at {locations.redact_url(root)} were made from {before} by "
            f"encoder {encoder[0]}, but the configuration names {wanted} and encoder "
            f"{config.encoder.model}; run `anisoalign encode` with this configuration first"
        )


def plan_corpus(config: RunConfig, corpus: Corpus, title: str, reporter: Reporter) -> Plan:
    """Cut a corpus in units; raises ValueError naming the file that cannot be used."""
    units = config.units
    pictures = corpus.modality == "image" and not corpus.holds_embeddings
    rows = units.images_per_shard if pictures else units.rows_per_shard
    with reporter.counted(f"planning {title}") as show:
        return plan(corpus, rows, config.rejects.unreadable_files, progress=show)
