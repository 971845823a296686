"""From the configuration's two sides to corpora on storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import (
    DEMO_CAPTIONS,
    DEMO_IMAGES,
    ConfigError,
    ImageSource,
    RunConfig,
    TextCorpus,
    TextSource,
)
from pipeline.formats import FORMATS, file_format
from pipeline.report.console import Reporter
from pipeline.schema import ID, SOURCE
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Part
from pipeline.storage.hub_datasets import HubDataset, copied
from pipeline.storage.manifest import Manifest, current_manifest, redacted
from pipeline.storage.planning import Plan, plan

if TYPE_CHECKING:
    from pipeline.demo.corpora import DemoCorpora

Side = Literal["text", "image"]

_JOB_WORKING_DIRECTORY = "/runtime_resources/working_dir_files/"


def encoder_options(config: RunConfig) -> EncoderOptions:
    """Return how actors make the encoder."""
    section = config.encoder
    model, pretrained = section.model, section.pretrained
    # Actors have working directories of their own.
    if model.startswith("local-dir:"):
        model = f"local-dir:{Path(model.removeprefix('local-dir:')).absolute()}"
    if pretrained is not None and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).absolute())
    return EncoderOptions(
        model=model,
        pretrained=pretrained,
        precision=section.precision,
        compile=section.compile,
        device=section.device,
        token_budget=section.token_budget,
        image_batch=section.image_batch,
        options=json.dumps(section.options, sort_keys=True),
    )


def said_embeddings(side: TextCorpus | ImageSource) -> bool | None:
    """Return whether a side holds embeddings, by its settings or its path's ending alone.

    None where neither says; `Corpus.holds_embeddings` looks at the files.
    """
    if isinstance(side, TextSource) and side.sources:
        said = {said_embeddings(source) for source in side.sources.values()}
        return said.pop() if len(said) == 1 else None
    if side.embedding_column is not None:
        return True
    found = side.format
    if found == "auto":
        if side.path is not None and side.path.startswith("demo:"):
            return False
        named = None if side.path is None else file_format(side.path)
        if named is None:
            return None
        found = named
    return FORMATS[found].embeddings == "always"


def is_named(config: RunConfig, side: Side) -> bool:
    """Return whether the configuration says where a side's rows come from."""
    if side == "text" and config.text.sources:
        return True
    return (config.text if side == "text" else config.image).path is not None


def over_long(config: RunConfig, side: Side) -> dict[str, str]:
    """Return what `Embed` is told of captions beyond the encoder's context; nothing if it cuts.

    So embeddings made where captions are cut, as they are by default, stay good.
    """
    wanted = config.text.over_long
    return {"over_long": wanted} if side == "text" and wanted != "truncate" else {}


def output(config: RunConfig, *parts: str) -> str:
    """Return a URL inside the run's output.

    Raises:
        ConfigError: for a relative path inside a submitted job, whose working directory is a copy
            that Ray throws away.
    """
    root = locations.absolute(config.output.path)
    if _JOB_WORKING_DIRECTORY in root:
        raise ConfigError(
            f"output.path is {config.output.path}, relative to the job's own copy of the working "
            "directory, which is lost when it ends; give an absolute path or a URL"
        )
    return locations.join(root, *parts)


def embeddings_root(config: RunConfig, side: Side) -> str:
    """Return where the encoded embeddings of a side are written."""
    return output(config, "embeddings", side)


def demo_corpora(config: RunConfig, reporter: Reporter) -> DemoCorpora:
    """Write the packaged world's corpora beside the output, or find them there.

    Raises:
        ConfigError: when the output is not a local folder.
    """
    # Here, not above: other corpora need nothing that draws.
    from pipeline.demo.corpora import write_demo_corpora

    root = output(config, "corpora", f"seed-{config.seed}")
    if "://" in root and not root.startswith("file://"):
        raise ConfigError(
            "demo: paths are drawn to local files; give output.path a local folder, or name your "
            "own text.path and image.path"
        )
    locations.check_writable(root)
    with reporter.counted("drawing the demo world") as show:
        return write_demo_corpora(
            Path(root.removeprefix("file://")),
            captions=config.demo.captions,
            images=config.demo.images,
            pairs=config.demo.pairs,
            seed=config.seed,
            progress=show,
        )


def source_corpus(config: RunConfig, side: Side, reporter: Reporter) -> Corpus:
    """Return the corpus of a side as the user named it; a Hugging Face data set is copied first.

    Raises:
        ConfigError: when no path is set, or the other side's demo corpus is named.
        ValueError: when a data set cannot be copied.
    """
    if side == "image":
        return _corpus(
            config,
            side,
            config.image,
            reporter,
            image_column=config.image.image_column,
        )
    common: dict[str, Any] = {
        "passed_through": config.text.passed_through,
        "max_text_bytes": config.rejects.max_text_bytes,
        "unicode": config.text.unicode,
        "unique_texts": config.rejects.duplicate_texts == "reject",
    }
    if not config.text.sources:
        column = config.text.text_column
        return _corpus(config, side, config.text, reporter, text_column=column, **common)
    parts = [
        Part(
            name=name,
            corpus=_corpus(
                config, side, source, reporter, name, text_column=source.text_column, **common
            ),
            weight=source.weight,
            max_rows=source.max_rows,
        )
        for name, source in config.text.sources.items()
    ]
    return Corpus(
        path="",
        modality=side,
        parts=tuple(parts),
        seed=config.seed,
        passed_through=(*config.text.passed_through, SOURCE),
    )


def _corpus(
    config: RunConfig,
    side: Side,
    section: TextCorpus | ImageSource,
    reporter: Reporter,
    name: str | None = None,
    **columns: Any,
) -> Corpus:
    """Return the corpus that one section names, `name` among several sources."""
    path, found = section.path, section.format
    key = side if name is None else f"{side}.sources.{name}"
    if path is None:
        example = "captions.txt" if side == "text" else "images.parquet"
        raise ConfigError(f"{key}.path is not set; give it with --set {key}.path={example}")
    if path in (DEMO_CAPTIONS, DEMO_IMAGES):
        wanted = DEMO_CAPTIONS if side == "text" else DEMO_IMAGES
        if path != wanted:
            raise ConfigError(f"{key}.path is {path}; the demo's {side} side is {wanted}")
        corpora = demo_corpora(config, reporter)
        path = str(corpora.captions if side == "text" else corpora.images)
    elif path.startswith("demo:"):
        raise ConfigError(f"{key}.path is {path}; known are {DEMO_CAPTIONS} and {DEMO_IMAGES}")
    elif found == "datasets":
        path, found = _copied(config, side, section, reporter, name, **columns), "parquet"
    return Corpus(
        path=path,
        modality=side,
        format=found,
        id_column=section.id_column,
        embedding_column=section.embedding_column,
        ids_path=section.ids_path,
        **columns,
    )


def _copied(
    config: RunConfig,
    side: Side,
    section: TextCorpus | ImageSource,
    reporter: Reporter,
    name: str | None,
    *,
    passed_through: tuple[str, ...] = (),
    text_column: str | None = None,
    image_column: str | None = None,
    **_: Any,
) -> str:
    """Return where a Hugging Face data set lies as Parquet, for all machines to read."""
    assert section.path is not None
    content = text_column if side == "text" else image_column
    wanted, optional = [section.embedding_column or content, *passed_through], [content]
    (optional if section.id_column == ID else wanted).append(section.id_column)
    encoded = section.embedding_column is None
    dataset = HubDataset(
        path=section.path,
        name=section.hub.name,
        revision=section.hub.revision,
        split=section.hub.split,
        streaming=section.hub.streaming,
        columns=tuple(one for one in wanted if one is not None),
        optional=tuple(one for one in optional if one is not None),
        image=image_column if encoded else None,
    )
    folder = output(config, "sources", side if name is None else f"{side}-{name}")
    locations.check_writable(folder)
    with reporter.counted(f"copying {dataset.shown}") as show:
        return copied(dataset, folder, show)


def embedding_corpus(config: RunConfig, side: Side, reporter: Reporter) -> Corpus:
    """Return the corpus that carries a side's embeddings: the user's own, or the encoded ones.

    Raises:
        ValueError: when the side has to be encoded first.
    """
    source = source_corpus(config, side, reporter) if is_named(config, side) else None
    if source is not None and source.holds_embeddings:
        return source
    root = embeddings_root(config, side)
    manifest = current_manifest(root)
    if manifest is None:
        raise ValueError(
            f"there are no {side} embeddings at {locations.redact_url(root)}; run `anisoalign "
            "encode` with this configuration first"
        )
    stale = _staleness(config, source, manifest)
    if stale is not None:
        raise ValueError(
            f"the {side} embeddings at {locations.redact_url(root)} were made from another "
            f"{stale}; run `anisoalign encode` with this configuration first"
        )
    return _stored_corpus(config, side)


def stored_embeddings(config: RunConfig, source: Corpus, source_plan: Plan) -> Corpus | None:
    """Return the encoded embeddings of this very corpus and encoder, None when there are none."""
    root = embeddings_root(config, source.modality)
    manifest = current_manifest(root)
    if manifest is None:
        return None
    same = manifest.source.get("digest") == source_plan.digest
    if not same or _staleness(config, source, manifest) is not None:
        return None
    return _stored_corpus(config, source.modality)


def _stored_corpus(config: RunConfig, side: Side) -> Corpus:
    passed = config.text.passed_through if side == "text" else ()
    if side == "text" and config.text.sources:
        passed = (*passed, SOURCE)
    root = embeddings_root(config, side)
    return Corpus(path=root, modality=side, format="dataset", passed_through=passed)


def _staleness(config: RunConfig, source: Corpus | None, manifest: Manifest) -> str | None:
    """Return what differs between stored embeddings and the configuration, None when nothing."""
    if source is not None:
        for name, value in source.identity.items():
            if manifest.source.get(name) != value:
                section = "rejects" if name == "max_text_bytes" else source.modality
                return f"{section}.{name} ({manifest.source.get(name)}, now {value})"
        over_long_then = _over_long_of(manifest)
        if source.modality == "text" and over_long_then != config.text.over_long:
            return f"text.over_long ({over_long_then}, now {config.text.over_long})"
    if config.rejects.check_ids and not manifest.ids_checked:
        return "rejects.check_ids (False, now True)"
    for name, now in redacted(encoder_options(config).said).items():
        before = manifest.encoder.get(name)
        if before != now:
            return f"encoder.{'model' if name == 'class' else name} ({before}, now {now})"
    return None


def _over_long_of(manifest: Manifest) -> str:
    """Return what a dataset's run did with over-long captions."""
    if manifest.config.get("rejects", {}).get("truncated") == "reject":  # as it was once said
        return "reject"
    return str(manifest.config.get("text", {}).get("over_long", "truncate"))


def changed_units(config: RunConfig, corpus: Corpus, plan: Plan) -> dict[str, int]:
    """Return how many units are new, and how many vanished, since the current version.

    Against what is first made of the corpus: its embeddings, or, of text embeddings given, the
    dataset. Of image embeddings given nothing is made unit by unit.
    """
    encoded = not corpus.holds_embeddings
    if corpus.modality == "image" and not encoded:
        return {"new_units": 0, "vanished_units": 0}
    root = embeddings_root(config, corpus.modality) if encoded else output(config, "dataset")
    current = current_manifest(root)
    before = {receipt.planned_unit for receipt in current.receipts} if current else set()
    now = {unit.key for unit in plan.units}
    return {"new_units": len(now - before), "vanished_units": len(before - now)}


def plan_corpus(
    config: RunConfig, corpus: Corpus, title: str, reporter: Reporter, *, remember: bool = True
) -> Plan:
    """Cut a corpus in units; raises ValueError naming the file that cannot be used.

    What was learnt of its files is remembered in the output, unless nothing is to be written.
    """
    units = config.units
    pictures = corpus.modality == "image" and not corpus.holds_embeddings
    rows = units.images_per_shard if pictures else units.rows_per_shard
    with reporter.counted(f"planning {title}") as show:
        cache = output(config, "plans", f"{corpus.modality}.json")
        return plan(corpus, rows, config.rejects.unreadable_files, show, cache, remember)
