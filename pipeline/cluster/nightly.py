"""A night: what is new since the last version is encoded, looked at, corrected and published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.align.base import Aligner
from pipeline.align.registry import create_aligner, load_aligner
from pipeline.cluster.drift import DriftReport, FittingText, check_drift
from pipeline.cluster.encode import encode_side
from pipeline.cluster.encoder_description import described_encoder
from pipeline.cluster.fit import (
    FitReport,
    FitSide,
    aligner_path,
    existing_aligner,
    fit,
    fit_side,
    store_moments,
)
from pipeline.cluster.outputs import embeddings_root, output
from pipeline.cluster.reductions import Reduced
from pipeline.cluster.segments import CorpusStatistics
from pipeline.cluster.sources import source_corpus
from pipeline.cluster.synthesize import CALIBRATED_FROM, check_encoder, synthesize
from pipeline.config import ConfigError, RunConfig
from pipeline.report.console import Reporter
from pipeline.storage import locations
from pipeline.storage.artifacts import read_artifact, write_artifact
from pipeline.storage.collection import collect
from pipeline.storage.locations import redact_url
from pipeline.storage.manifest import POINTER, Manifest, current_manifest, open_manifest


def nightly(config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Bring the dataset up to the text corpus; returns what summary.json holds.

    New and changed units alone are encoded and corrected. Before anything is corrected, the drift
    of the new text from the aligner's is measured; past a threshold, `nightly.on_drift` says what
    happens. The first night fits the aligner, unless `aligner.path` names one. An unchanged corpus
    makes no new version.

    Raises:
        ConfigError: when the settings lack what a night needs.
        ValueError: when an input cannot be used, or the text drifted and `on_drift` is fail. What
            was published before stays as it is.
    """
    previous = current_manifest(output(config, "dataset"))
    path = aligner_path(config)
    aligner = _aligner_there(config, path, previous)
    _check_settings(config, aligner, reporter)
    flows = [encode_side(config, "text", reporter)]
    fitted: FitReport | None = None
    if aligner is None:
        flows.append(encode_side(config, "image", reporter))
        fitted = fit(config, reporter, keep_ids=True)
        aligner = load_aligner(path)
    text = fit_side(config, "text", reporter)
    drift: dict[str, Any] | None = None
    if not _is_published(previous, text, aligner):
        check_encoder(aligner, path, text.encoder, text.dimension, config.names)
        known = {receipt.planned_unit for receipt in previous.receipts} if previous else set()
        fresh = frozenset(unit.key for unit in text.plan.units if unit.key not in known)
        reference = _reference(config, path, reporter)
        if reference is not None:
            found, statistics = check_drift(config, reference, text, fresh, reporter)
            drift = found.to_mapping()
            if _act_on(config, found, previous, reporter) == "refit":
                flows.append(encode_side(config, "image", reporter))
                fitted, reference = _refit(config, path, text, statistics, reporter)
                again, _ = check_drift(config, reference, text, fresh, reporter)
                drift = {**again.to_mapping(), "before_refit": drift}
            distances: dict[str, Any] = _flattened(drift)
            reporter.event("drift", exceeded=drift["exceeded"], **distances)
    published = synthesize(config, reporter, stored=True, drift=drift)
    flows.append(published)
    manifest = open_manifest(published.path)
    return {
        "seed": config.seed,
        "flows": [flow.to_mapping() for flow in flows if flow is not None],
        "fit": fitted.to_mapping() if fitted else None,
        "drift": drift,
        "dataset": redact_url(published.path),
        "version": manifest.version,
        "parent": manifest.parent,
        "rows": manifest.rows,
        **_changes(previous, manifest),
        "collected": None if published.unchanged else _collect_garbage(config, reporter),
    }


def _changes(previous: Manifest | None, manifest: Manifest) -> dict[str, Any]:
    """Return what the night changed, in units."""
    if previous is not None and previous.version == manifest.version:
        return {"unchanged": True, "added": 0, "removed": 0, "kept": manifest.units}
    counts = {name: len(units) for name, units in (manifest.changes or {}).items()}
    return {"unchanged": False, **counts}


def _aligner_there(config: RunConfig, path: str, previous: Manifest | None) -> Aligner | None:
    """Return the aligner in use, None on the first night.

    Raises:
        ValueError: when it is gone or damaged: to fit another one unasked would correct all anew.
    """
    aligner = existing_aligner(path)
    if aligner is not None:
        return aligner
    if config.aligner.path is not None:
        raise ValueError(
            f"there is no whole aligner at aligner.path ({redact_url(path)}); name one, or remove "
            "aligner.path and set image.path to fit one on the first night"
        )
    made_by = (previous.aligner if previous else None) or {}
    used = made_by.get(CALIBRATED_FROM) or made_by.get("fingerprint")
    if used is None:
        return None
    # A refit that was killed while it wrote: the aligner of before was put aside.
    kept = _kept_aligner(config, used)
    if existing_aligner(kept) is None:
        raise ValueError(
            f"the aligner at {redact_url(path)}, by which the current version was made, is gone or "
            "damaged; bring it back, or run `anisoalign fit` with this configuration"
        )
    write_artifact(path, *read_artifact(kept))
    return load_aligner(path)


def _kept_aligner(config: RunConfig, fingerprint: str) -> str:
    return output(config, "aligners", fingerprint[:16])


def _check_settings(config: RunConfig, aligner: Aligner | None, reporter: Reporter) -> None:
    """Name what is missing before any work: a refit in the small hours would be the worst time."""
    text = source_corpus(config, "text", reporter)
    if config.nightly.on_drift == "refit":
        if config.aligner.path is not None:
            raise ConfigError(
                "nightly.on_drift is refit, but aligner.path names an aligner made elsewhere; "
                "remove aligner.path, or set nightly.on_drift to warn or fail"
            )
        source_corpus(config, "image", reporter)
    if aligner is None:
        source_corpus(config, "image", reporter)
        return
    if not text.holds_embeddings:
        encoder = described_encoder(config)
        check_encoder(aligner, aligner_path(config), encoder, encoder["dimension"], config.names)
    _mention_other_settings(config, aligner, reporter)


def _mention_other_settings(config: RunConfig, aligner: Aligner, reporter: Reporter) -> None:
    """Say that the aligner in use is not what the configuration would fit now."""
    if config.aligner.path is not None:
        return
    wanted = create_aligner(config.align.method, config.align, config.seed).configuration()
    if wanted != aligner.configuration():
        reporter.say(
            "the aligner was fitted with other align settings and is used as it is; run "
            "`anisoalign fit` with this configuration to change it"
        )


def _is_published(previous: Manifest | None, text: FitSide, aligner: Aligner) -> bool:
    """Return whether the current version was made from this very text by this aligner."""
    if previous is None or previous.aligner is None:
        return False
    made_by = {previous.aligner.get(name) for name in ("fingerprint", CALIBRATED_FROM)}
    return previous.source.get("digest") == text.plan.digest and aligner.fingerprint in made_by


def _reference(config: RunConfig, path: str, reporter: Reporter) -> FittingText | None:
    """Return what drift is measured from; None, said aloud, where the aligner does not tell.

    Raises:
        ValueError: then, when `nightly.on_drift` asks for more than a warning.
    """
    reference = FittingText.of(path)
    if reference is None:
        missing = (
            f"the aligner at {redact_url(path)} carries no statistics of its fitting "
            f"{config.names.source}, so drift cannot be measured"
        )
        if config.nightly.on_drift != "warn":
            raise ValueError(
                f"{missing}; fit it with `anisoalign fit`, or set nightly.on_drift to warn"
            )
        reporter.say(f"warning: {missing}")
    return reference


def _act_on(
    config: RunConfig, drift: DriftReport, previous: Manifest | None, reporter: Reporter
) -> Literal["publish", "refit"]:
    """Return what is to be done now that the drift is known, and say why.

    Raises:
        ValueError: when it passes a threshold and `nightly.on_drift` is fail.
    """
    if not drift.exceeded:
        return "publish"
    found, source = "; ".join(drift.exceeded), config.names.source
    if config.nightly.on_drift == "fail":
        stays = f"version {previous.version} stays current" if previous else "nothing is published"
        raise ValueError(
            f"the {source} has drifted from what the aligner was fitted on: {found}; {stays}. Look "
            f"at the new {source}; then fit again (`anisoalign fit`), or accept it with "
            "nightly.on_drift=warn or a higher threshold"
        )
    refit = config.nightly.on_drift == "refit"
    consequence = "fitting again" if refit else "published all the same"
    reporter.say(f"warning: the {source} has drifted: {found}; {consequence}")
    return "refit" if refit else "publish"


def _refit(
    config: RunConfig,
    path: str,
    text: FitSide,
    statistics: CorpusStatistics,
    reporter: Reporter,
) -> tuple[FitReport, FittingText]:
    """Fit on the whole of today's corpus; the aligner of before is kept in aligners/."""
    kept = _kept_aligner(config, str(load_aligner(path).fingerprint))
    write_artifact(kept, *read_artifact(path))
    assert statistics.whole is not None
    moments = statistics.whole.moments
    store_moments(config, text, Reduced(moments, moments.count, statistics.rejected))
    fitted = fit(config, reporter)
    reference = FittingText.of(path)
    assert reference is not None, "a fit stores its statistics"
    return fitted, reference


def _flattened(drift: Mapping[str, Any]) -> dict[str, float]:
    """Return the distances by `what_kind`, as metrics have them."""
    return {
        f"{what}_{kind}": value
        for what in ("fresh", "corpus")
        for kind, value in (drift[what] or {}).items()
        if value is not None
    }


def _collect_garbage(config: RunConfig, reporter: Reporter) -> str | None:
    """Leave `nightly.keep_versions` versions of what this run writes; returns what came of it.

    The night is over and published: what goes wrong here is said, and fails nothing.
    """
    keep = config.nightly.keep_versions
    if keep is None:
        return None
    try:
        for root in (output(config, "dataset"), embeddings_root(config, "text")):
            if locations.exists(locations.join(root, POINTER)):
                collect(root, keep, reporter.run_id)
    except ValueError as error:
        reporter.say(f"warning: old versions were not collected: {error}")
        return f"failed: {error}"
    return "done"
