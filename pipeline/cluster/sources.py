"""From what the configuration says of a side to the corpus of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.outputs import Side, output
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
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Part
from pipeline.storage.hub_datasets import HubDataset, copied

if TYPE_CHECKING:
    from pipeline.demo.corpora import DemoCorpora

_OWN_ENCODER = "python:"
"""How the models begin that users bring along."""


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
        ConfigError: when no path is set, the other side's demo corpus is named, or a side that is
            neither text nor image has no embeddings.
        ValueError: when a data set cannot be copied.
    """
    if side == "image":
        column = config.image.image_column
        return _corpus(config, side, config.image, reporter, image_column=column)
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
        called=config.names.of(side),
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
    path, found, names = section.path, section.format, config.names
    key = names.key(side, "path") if name is None else f"{side}.sources.{name}.path"
    if path is None:
        example = "captions.txt" if side == "text" else "images.parquet"
        if not names.default:
            example = f"{names.of(side)}.npy"
        raise ConfigError(f"{key} is not set; give it with --set {side}.path={example}")
    if path.startswith("demo:"):
        path = _demo_path(config, side, path, key, reporter)
    elif found == "datasets":
        path, found = _copied(config, side, section, reporter, name, **columns), "parquet"
    corpus = Corpus(
        path=path,
        modality=side,
        called=names.of(side),
        format=found,
        id_column=section.id_column,
        embedding_column=section.embedding_column,
        ids_path=section.ids_path,
        **columns,
    )
    _check_encodable(config, side, corpus)
    return corpus


def _demo_path(config: RunConfig, side: Side, path: str, key: str, reporter: Reporter) -> str:
    """Return where the packaged world's corpus of a side lies, drawn if need be."""
    wanted = DEMO_CAPTIONS if side == "text" else DEMO_IMAGES
    if path not in (DEMO_CAPTIONS, DEMO_IMAGES):
        raise ConfigError(f"{key} is {path}; known are {DEMO_CAPTIONS} and {DEMO_IMAGES}")
    if path != wanted:
        raise ConfigError(f"{key} is {path}; the demo's {side} side is {wanted}")
    if not config.names.default:
        raise ConfigError(
            f"{key} is {path}, but the packaged world is of text and images; leave names.source "
            f"and names.target out, or give your own {side}.path"
        )
    corpora = demo_corpora(config, reporter)
    return str(corpora.captions if side == "text" else corpora.images)


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
        copy = copied(dataset, folder, reporter.run_id, show)
    if copy.stale:
        reporter.say(f"the last copy of {dataset.shown} is taken: {copy.stale}")
    return copy.folder


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
