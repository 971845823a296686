"""The fit flow: statistics, frame, training, calibration, artifact."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import Aligner, MomentAligner
from pipeline.align.registry import create_aligner, load_aligner
from pipeline.align.transports import SubspaceTransport
from pipeline.cluster.corpora import embedding_corpus, plan_corpus
from pipeline.cluster.duplicates import may_share_rows
from pipeline.cluster.encoder_description import is_by_encoder_of_now
from pipeline.cluster.outputs import Side, output
from pipeline.cluster.reductions import Reduced, reduce_corpus
from pipeline.cluster.training import TrainingRows, train_aligner
from pipeline.config import RunConfig
from pipeline.geometry.drift import RadialBins, RadialCounts, TextStatistics
from pipeline.geometry.moments import Moments
from pipeline.report.console import Reporter
from pipeline.stages.accumulate import (
    Measure,
    MeasureMapped,
    MeasureMoments,
    MeasurePolar,
    MeasureRadii,
    MeasureTogether,
)
from pipeline.storage import locations
from pipeline.storage.artifacts import (
    DamagedArtifactError,
    MissingArtifactError,
    read_artifact,
    write_artifact,
)
from pipeline.storage.corpus import Corpus, resolve_format
from pipeline.storage.id_hashes import looks_at_texts
from pipeline.storage.manifest import open_manifest
from pipeline.storage.norms import Norms
from pipeline.storage.planning import Plan
from pipeline.storage.slices import combined

_FIT_VERSION = 5
"""Goes up when the same inputs and settings are fitted to something else."""

_NORMS = "norms"
RADIAL_BINS = "radial_bins"
"""Where an artifact's statistics keep the bins of the text's radii."""


@dataclass(frozen=True)
class FitReport:
    """What a fit did: `reused` when the artifact was there already; seconds are wall-clock.

    `norms` are those of given embeddings, by side, where they were not of length 1.
    """

    method: str
    rank: int | None
    image_rows: int
    text_rows: int
    seconds: float
    path: str
    fingerprint: str
    reused: bool
    norms: Mapping[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**vars(self), "path": locations.redact_url(self.path)}


@dataclass(frozen=True)
class FitSide:
    """One side of a fit: its embeddings, cut in units, and the encoder they came from."""

    side: Side
    corpus: Corpus
    plan: Plan
    encoder: dict[str, Any]

    @property
    def dimension(self) -> int:
        """Width of the embeddings."""
        assert self.plan.dimension is not None, "the corpus holds embeddings"
        return self.plan.dimension


def fit_side(config: RunConfig, side: Side, reporter: Reporter) -> FitSide:
    """Find and plan a side's embeddings; raises ValueError when there are none."""
    corpus = embedding_corpus(config, side, reporter)
    if not is_by_encoder_of_now(config, corpus):
        raise ValueError(
            f"the {corpus.name} embeddings at {locations.redact_url(corpus.path)} were made by "
            f"another {config.encoder.model}, of another fingerprint; run `anisoalign encode` with "
            "this configuration first"
        )
    plan = plan_corpus(config, corpus, f"{corpus.name} embeddings", reporter)
    return FitSide(side, corpus, plan, encoder_of(corpus))


def encoder_of(corpus: Corpus) -> dict[str, Any]:
    """Return the encoder that a corpus of embeddings came from, as far as it is known.

    Raises:
        ValueError: if parts of a mixed corpus came from two encoders.
    """
    known = [
        open_manifest(one.path).encoder
        for one in corpus.corpora
        if resolve_format(one) == "dataset"
    ]
    if len({encoder["fingerprint"] for encoder in known}) > 1:
        raise ValueError(
            f"{corpus.shown} holds embeddings of several encoders; encode all of it with one"
        )
    return known[0] if known else {"model": "unknown (embeddings given)", "fingerprint": ""}


def aligner_path(config: RunConfig) -> str:
    """Return where the aligner is read from or written to."""
    if config.aligner.path is not None:
        return locations.absolute(config.aligner.path)
    return output(config, "aligner")


def fit(config: RunConfig, reporter: Reporter, *, keep_ids: bool = False) -> FitReport:
    """Fit the configured method on both sides' embeddings and write its artifact.

    An artifact fitted before from the same inputs and settings is kept as it is. `keep_ids` says
    that the dataset of the text is written next: the hashes of its ids are kept on the way, since
    that flow would have to read all units again for them.

    Raises:
        ValueError: when embeddings are missing, their widths differ, too many cannot be used, or
            the rank does not fit them.
    """
    start = time.perf_counter()
    path = output(config, "aligner")
    locations.check_writable(path)
    image, text = (fit_side(config, side, reporter) for side in ("image", "text"))
    _check_sides(image, text)
    aligner = create_aligner(config.align.method, config.align, config.seed)
    key = _fit_key(config, aligner, image, text)
    existing = existing_aligner(path)
    if existing is not None and existing.provenance.get("fit_key") == key:
        reporter.say(f"the aligner at {locations.redact_url(path)} is up to date")
        return _report(existing, path, start, reused=True)
    image_moments = _moments(config, image, reporter)
    text_moments = _moments(config, text, reporter, _ids_root(config, text) if keep_ids else None)
    # What the dataset of the text says itself is not said twice.
    for side, moments in ((image, image_moments), (text, text_moments))[: 1 if keep_ids else 2]:
        if said := moments.norms.sentence(moments.rows, side.corpus.shown):
            reporter.say(said)
    norms = {"image": image_moments.norms.to_mapping(), "text": text_moments.norms.to_mapping()}
    wanted = aligner.images_wanted
    images = _chosen(image, wanted, config.seed).load() if wanted else None
    if isinstance(aligner, AnisoAlign):
        aligner.fit_frame(image_moments.state, text_moments.state, images)
        _fit_anisoalign(config, aligner, image, text, key, reporter)
    else:
        assert isinstance(aligner, MomentAligner)
        aligner.fit_moments(image_moments.state, text_moments.state, images)
    bins = RadialBins.of(text_moments.state)
    radii = _last_pass(aligner, text, bins, reporter)
    provenance = {
        "fit_key": key,
        "encoder": text.encoder,
        "source": _said(text, text_moments),
        "target": _said(image, image_moments),
        "calibration_digest": text.plan.digest,
        **({_NORMS: norms} if any(norms.values()) else {}),
    }
    states = {
        "image": image_moments.state,
        "text": TextStatistics(text_moments.state, radii),
        RADIAL_BINS: bins,
    }
    statistics = {
        f"{name}.{key}": tensor
        for name, state in states.items()
        for key, tensor in state.tensors().items()
    }
    aligner.save(path, provenance, statistics)
    return _report(aligner, path, start, reused=False)


def _said(side: FitSide, moments: Reduced) -> dict[str, Any]:
    """Return what an aligner keeps of a side that it was fitted on."""
    return {
        "name": side.corpus.name,
        "path": side.corpus.shown,
        "digest": side.plan.digest,
        "rows": moments.rows,
    }


def _last_pass(
    aligner: Aligner, text: FitSide, bins: RadialBins, reporter: Reporter
) -> RadialCounts:
    """Calibrate, where the method does, and count the text's radii, in one pass."""
    measures: dict[str, Measure] = {"radii": MeasureRadii(bins)}
    if aligner.calibrates:
        measures["mapped"] = MeasureMapped(aligner)
    states = reduce_corpus(
        text.corpus,
        text.plan.units,
        text.dimension,
        MeasureTogether(measures),
        title="calibrating mu-hat" if aligner.calibrates else f"radii of {text.corpus.name}",
        reporter=reporter,
    ).state.states
    if aligner.calibrates:
        aligner.calibrate(states["mapped"])
    return states["radii"]


def calibrate(aligner: Aligner, text: FitSide, reporter: Reporter) -> None:
    """Set mu-hat from one pass over all text embeddings (section 4.4c)."""
    mapped = reduce_corpus(
        text.corpus,
        text.plan.units,
        text.dimension,
        MeasureMapped(aligner),
        title="calibrating mu-hat",
        reporter=reporter,
    )
    aligner.calibrate(mapped.state)


def _fit_anisoalign(
    config: RunConfig,
    aligner: AnisoAlign,
    image: FitSide,
    text: FitSide,
    key: str,
    reporter: Reporter,
) -> None:
    polar = {
        side.side: reduce_corpus(
            side.corpus,
            side.plan.units,
            side.dimension,
            MeasurePolar(aligner, side.side),
            title=f"phases and radii of {side.corpus.name}",
            reporter=reporter,
        ).state
        for side in ((image, text) if aligner.measures_text else (image,))
    }
    aligner.fit_polar(polar["image"], polar.get("text"))
    if not aligner.refines:
        return
    rows = [_chosen(side, config.train.max_rows, config.seed) for side in (image, text)]
    workers = "driver" if config.train.workers == 0 else f"{config.train.workers}-workers"
    folder = output(config, "training", f"{key[:16]}-{workers}")
    train_aligner(config, aligner, rows[0], rows[1], folder, reporter)


def _chosen(side: FitSide, max_rows: int, seed: int) -> TrainingRows:
    return TrainingRows.choose(side.corpus, side.plan.units, side.dimension, max_rows, seed)


def _moments(
    config: RunConfig, side: FitSide, reporter: Reporter, ids_root: str | None = None
) -> Reduced:
    """Return a side's moments, from storage when the same units were counted before."""
    url = _moments_url(config, side)
    if locations.exists(locations.join(url, "config.json")):
        counts, tensors = read_artifact(url)
        reduced = Reduced(
            Moments.from_tensors(tensors),
            counts["rows"],
            counts["rejected"],
            Norms.of_mapping(counts.get(_NORMS, {})),
        )
    else:
        reduced = reduce_corpus(
            side.corpus,
            side.plan.units,
            side.dimension,
            MeasureMoments(),
            title=f"moments of {side.corpus.name}",
            reporter=reporter,
            ids_root=ids_root,
        )
        store_moments(config, side, reduced)
    if reduced.rejected > config.rejects.max_share * (reduced.rows + reduced.rejected):
        raise ValueError(
            f"{reduced.rejected} of {reduced.rows + reduced.rejected} embeddings of "
            f"{side.corpus.shown} cannot be used (NaN, zero, wrong width, or a repeated id), more "
            f"than rejects.max_share={config.rejects.max_share:g} allows"
        )
    reduced.norms.require_plausible(side.corpus.shown)
    return reduced


def _ids_root(config: RunConfig, side: FitSide) -> str | None:
    """Return where the ids of a text side are going to be asked for, None where they are not."""
    looked_at = config.rejects.check_ids or looks_at_texts(side.corpus)
    if not looked_at or not may_share_rows(side.corpus, side.plan):
        return None
    root = output(config, "dataset")
    locations.check_writable(root)
    return root


def store_moments(config: RunConfig, side: FitSide, reduced: Reduced) -> None:
    """Keep a side's moments for the fits of this very corpus."""
    counts: dict[str, Any] = {"rows": reduced.rows, "rejected": reduced.rejected}
    if norms := reduced.norms.to_mapping():
        counts[_NORMS] = norms
    write_artifact(_moments_url(config, side), counts, reduced.state.tensors())


def _moments_url(config: RunConfig, side: FitSide) -> str:
    digest = combined("moments", side.plan.digest, side.dimension)
    return output(config, "statistics", f"{side.side}-moments-{digest[:16]}")


def _check_sides(image: FitSide, text: FitSide) -> None:
    target, source = image.corpus.name, text.corpus.name
    if image.dimension != text.dimension:
        raise ValueError(
            f"{target} embeddings have width {image.dimension} ({image.corpus.shown}), {source} "
            f"embeddings {text.dimension} ({text.corpus.shown}); both must come from one encoder"
        )
    known = {side.encoder["fingerprint"] for side in (image, text)} - {""}
    if len(known) > 1:
        raise ValueError(
            f"{target} and {source} embeddings come from two different encoders; encode both sides "
            "again with one"
        )


def _fit_key(config: RunConfig, aligner: Aligner, image: FitSide, text: FitSide) -> str:
    """Return a digest of everything the artifact depends on; the aligner is not fitted yet."""
    return combined(
        "fit",
        _FIT_VERSION,
        aligner.configuration(),
        config.train.max_rows if isinstance(aligner, AnisoAlign) else None,
        image.plan.digest,
        text.plan.digest,
        text.encoder["fingerprint"],
        *(() if config.names.default else (config.names.source, config.names.target)),
    )


def existing_aligner(path: str) -> Aligner | None:
    """Return the aligner at a URL, None when there is none that is whole.

    Raises:
        ValueError: when the store fails, or the aligner is of an unknown method.
    """
    try:
        return load_aligner(path)
    except (MissingArtifactError, DamagedArtifactError):
        return None  # never fitted, or killed while it was written


def _rows(aligner: Aligner, side: Side) -> int:
    said = aligner.provenance.get("source" if side == "text" else "target")
    if said is None:  # fitted by an earlier release
        return int(aligner.provenance[f"{side}_rows"])
    return int(said["rows"])


def _report(aligner: Aligner, path: str, start: float, *, reused: bool) -> FitReport:
    assert aligner.fingerprint is not None
    return FitReport(
        method=aligner.method,
        rank=aligner.frame.rank if isinstance(aligner, AnisoAlign | SubspaceTransport) else None,
        image_rows=_rows(aligner, "image"),
        text_rows=_rows(aligner, "text"),
        seconds=time.perf_counter() - start,
        path=path,
        fingerprint=aligner.fingerprint,
        reused=reused,
        norms=aligner.provenance.get(_NORMS, {}),
    )
