"""From the configuration's two sides to corpora on storage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import (
    DEMO_CAPTIONS,
    DEMO_IMAGES,
    ConfigError,
    ImageSource,
    RunConfig,
    TextSource,
)
from pipeline.report.console import Reporter
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Format, file_format
from pipeline.storage.manifest import Manifest, current_manifest
from pipeline.storage.planning import Plan, plan

if TYPE_CHECKING:
    from pipeline.demo.corpora import DemoCorpora

Side = Literal["text", "image"]

_OWN_ENCODER = "python:"
"""How the models begin that users bring along."""
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
        token_budget=section.token_budget,
        image_batch=section.image_batch,
    )


def said_format(side: TextSource | ImageSource) -> Format | None:
    """Return the format that a side's settings or its path's ending name, None where neither does.

    Nothing is looked at; `resolve_format` looks.
    """
    if side.format != "auto":
        return side.format
    return None if side.path is None else file_format(side.path)


def truncation(config: RunConfig, side: Side) -> dict[str, bool]:
    """Return what `Embed` is told of captions that the encoder cuts; nothing where it keeps them.

    Part of a fingerprint too, so that the default leaves fingerprints as they are.
    """
    reject = side == "text" and config.rejects.truncated == "reject"
    return {"reject_truncated": True} if reject else {}


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
    """Return the corpus of a side as the user named it.

    Raises:
        ConfigError: when no path is set, the other side's demo corpus is named, or a side that is
            neither text nor image has no embeddings.
    """
    section = config.text if side == "text" else config.image
    names, path = config.names, section.path
    if path is None:
        example = "captions.txt" if side == "text" else "images.parquet"
        if not names.default:
            example = f"{names.of(side)}.npy"
        raise ConfigError(
            f"{names.key(side, 'path')} is not set; give it with --set {side}.path={example}"
        )
    if path in (DEMO_CAPTIONS, DEMO_IMAGES):
        wanted = DEMO_CAPTIONS if side == "text" else DEMO_IMAGES
        if path != wanted:
            raise ConfigError(f"{side}.path is {path}; the demo's {side} side is {wanted}")
        if not names.default:
            raise ConfigError(
                f"{names.key(side, 'path')} is {path}, but the packaged world is of text and "
                f"images; leave names.source and names.target out, or give your own {side}.path"
            )
        corpora = demo_corpora(config, reporter)
        path = str(corpora.captions if side == "text" else corpora.images)
    elif path.startswith("demo:"):
        raise ConfigError(f"{side}.path is {path}; known are {DEMO_CAPTIONS} and {DEMO_IMAGES}")
    if side == "text":
        corpus = Corpus(
            path=path,
            modality="text",
            called=names.source,
            format=config.text.format,
            id_column=config.text.id_column,
            text_column=config.text.text_column,
            embedding_column=config.text.embedding_column,
            ids_path=config.text.ids_path,
            passed_through=config.text.passed_through,
            max_text_bytes=config.rejects.max_text_bytes,
        )
    else:
        corpus = Corpus(
            path=path,
            modality="image",
            called=names.target,
            format=config.image.format,
            id_column=config.image.id_column,
            image_column=config.image.image_column,
            embedding_column=config.image.embedding_column,
            ids_path=config.image.ids_path,
        )
    _check_encodable(config, side, corpus)
    return corpus


def _check_encodable(config: RunConfig, side: Side, corpus: Corpus) -> None:
    """Raise ConfigError for a side of another modality that only captions' encoder could encode."""
    model = config.encoder.model
    if config.names.default or model.startswith(_OWN_ENCODER) or corpus.holds_embeddings:
        return
    raise ConfigError(
        f"{config.names.key(side, 'path')} holds no embeddings, and the encoder {model} knows "
        f"text and images alone: give embeddings ({side}.embedding_column, or .npy files), or an "
        f"encoder of your own (encoder.model={_OWN_ENCODER}module:Class)"
    )


def embedding_corpus(config: RunConfig, side: Side, reporter: Reporter) -> Corpus:
    """Return the corpus that carries a side's embeddings: the user's own, or the encoded ones.

    Raises:
        ValueError: when the side has to be encoded first.
    """
    section = config.text if side == "text" else config.image
    source = None if section.path is None else source_corpus(config, side, reporter)
    if source is not None and source.holds_embeddings:
        return source
    root = embeddings_root(config, side)
    manifest = current_manifest(root)
    if manifest is None:
        raise ValueError(
            f"there are no {config.names.of(side)} embeddings at {locations.redact_url(root)}; run "
            "`anisoalign encode` with this configuration first"
        )
    stale = _staleness(config, source, manifest)
    if stale is not None:
        raise ValueError(
            f"the {config.names.of(side)} embeddings at {locations.redact_url(root)} were made "
            f"from another {stale}; run `anisoalign encode` with this configuration first"
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
    root = embeddings_root(config, side)
    return Corpus(
        path=root,
        modality=side,
        called=config.names.of(side),
        format="dataset",
        passed_through=passed,
    )


def _staleness(config: RunConfig, source: Corpus | None, manifest: Manifest) -> str | None:
    """Return what differs between stored embeddings and the configuration, None when nothing."""
    if source is not None:
        for name, value in source.identity.items():
            if manifest.source.get(name) != value:
                section = "rejects" if name == "max_text_bytes" else source.modality
                return f"{section}.{name} ({manifest.source.get(name)}, now {value})"
        truncated = manifest.config.get("rejects", {}).get("truncated", "keep")
        if source.modality == "text" and truncated != config.rejects.truncated:
            return f"rejects.truncated ({truncated}, now {config.rejects.truncated})"
    if config.rejects.check_ids and not manifest.ids_checked:
        return "rejects.check_ids (False, now True)"
    options = encoder_options(config)
    for name in ("model", "pretrained", "precision"):
        before, now = manifest.encoder.get(name), getattr(options, name)
        if before != now:
            return f"encoder.{name} ({before}, now {now})"
    return None


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
