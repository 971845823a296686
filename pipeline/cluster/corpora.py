"""From the configuration's two sides to corpora on storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cluster.outputs import Side, embeddings_root, output
from pipeline.cluster.sources import is_named, source_corpus
from pipeline.config import (
    RunConfig,
)
from pipeline.report.console import Reporter
from pipeline.schema import SOURCE
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus
from pipeline.storage.manifest import Manifest, current_manifest
from pipeline.storage.places import redacted
from pipeline.storage.planning import Plan, plan

if TYPE_CHECKING:
    pass


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


def over_long(config: RunConfig, side: Side) -> dict[str, str]:
    """Return what `Embed` is told of captions beyond the encoder's context; nothing if it cuts.

    So embeddings made where captions are cut, as they are by default, stay good.
    """
    wanted = config.text.over_long
    return {"over_long": wanted} if side == "text" and wanted != "truncate" else {}


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
    if side == "text" and config.text.sources:
        passed = (*passed, SOURCE)
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
        now = source.identity
        # What is left at its default is in neither.
        for name in dict.fromkeys([*now, *manifest.source]):
            value = now.get(name)
            if name != "digest" and manifest.source.get(name) != value:
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
