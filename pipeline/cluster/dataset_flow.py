"""The flow that every dataset is written by: read, embed, write, commit."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ray.exceptions import RayError

from pipeline import __version__
from pipeline.cluster.duplicates import find_duplicates, may_share_rows
from pipeline.cluster.errors import user_error
from pipeline.cluster.indexing import has_index, index_dataset, needs_index
from pipeline.cluster.leases import take_lease
from pipeline.cluster.units import UnitFlow
from pipeline.cluster.writing import writing
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.schema import RejectReason
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.id_hashes import looks_at_texts
from pipeline.storage.lease import Lease
from pipeline.storage.manifest import Kind, Manifest, commit, current_manifest
from pipeline.storage.norms import Norms
from pipeline.storage.places import redacted
from pipeline.storage.planning import Plan
from pipeline.storage.receipts import Receipt
from pipeline.storage.shards import finished, whole

_LEASE_CHECKED_EVERY_S = 30.0


@dataclass(frozen=True)
class DatasetRequest:
    """What to write: a corpus through `embed` (arguments of `Embed`) to a dataset at `root`.

    `fingerprint` covers all that changes a shard's content beside its unit; `drift` is what was
    measured of the text, for the manifest.
    """

    name: str
    corpus: Corpus
    plan: Plan
    root: str
    kind: Kind
    dtype: str
    dimension: int
    embed: Mapping[str, Any]
    fingerprint: str
    encoder: Mapping[str, Any]
    aligner: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None

    @property
    def source(self) -> dict[str, Any]:
        """What the dataset is made from, as its manifest says it."""
        return {**self.corpus.identity, "digest": self.plan.digest}


@dataclass(frozen=True)
class FlowReport:
    """What a flow did, for the summary: seconds are wall-clock time.

    `truncated` counts captions beyond the encoder's context, cut or encoded in parts,
    `retried_units` those that failed before they were written. Units are added and removed against
    the version before, and `unchanged` says that it is still the current one. `norms` are those of
    given embeddings where they were not of length 1.
    """

    name: str
    rows: int
    rejected: int
    truncated: int
    units: int
    reused_units: int
    added_units: int
    removed_units: int
    retried_units: int
    unchanged: bool
    seconds: float
    path: str
    version: str
    norms: Mapping[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**vars(self), "path": locations.redact_url(self.path)}


def software_versions() -> dict[str, str]:
    """Return the versions of what a dataset's content depends on."""
    names = ("torch", "open_clip_torch", "pyarrow", "numpy", "ray")
    return {"anisoalign": __version__, **{name: version(name) for name in names}}


def write_dataset(config: RunConfig, request: DatasetRequest, reporter: Reporter) -> FlowReport:
    """Write what is missing of a dataset and commit a version of it, as its only writer.

    Units whose shard and receipt exist are kept as they are; where the current version was made
    from the very same, nothing is read at all. Units that fail don't stop the others. Nothing
    becomes visible to readers before every unit is written.

    Raises:
        LeaseHeldError: when another run writes to the dataset, for longer than `lease.wait_s`.
        LeaseLostError: when this run is found not to be its only writer any more.
        UnwritableError: when the output takes no file.
        ValueError: when units failed `units.max_attempts` times, an input file cannot be read, or
            the share of rejected rows passes `rejects.max_share`.
    """
    start = time.perf_counter()
    locations.check_writable(request.root)
    with take_lease(config, request.root, request.name, reporter) as lease:
        current = current_manifest(request.root)
        if current is not None and _is_made_of_the_same(config, request, current):
            _check_rejects(config, request, current.receipts)
            _say_planned(request, reporter, current.units, current.receipts)
            return _report(request, current, current, current.units, 0, start, reporter)
        receipts, reused, retried = _all_receipts(config, request, current, lease, reporter)
        _check_rejects(config, request, receipts)
        index = None
        if needs_index(request.kind):
            index = index_dataset(request.root, receipts, current, reporter, lease.check)
        manifest = commit(
            request.root,
            kind=request.kind,
            dimension=request.dimension,
            dtype=request.dtype,
            receipts=receipts,
            source=request.source,
            config=config.to_mapping(),
            encoder=request.encoder,
            aligner=request.aligner,
            software=software_versions(),
            duplicate_units=request.plan.duplicate_units,
            skipped_files=[vars(skipped) for skipped in request.plan.skipped_files],
            run_id=reporter.run_id,
            drift=request.drift,
            index=index,
            names=config.names,
            before_publish=lease.check,
        )
        return _report(request, current, manifest, reused, retried, start, reporter)


def _is_made_of_the_same(config: RunConfig, request: DatasetRequest, current: Manifest) -> bool:
    """Return whether the current version is what this request would write, and all there."""
    wanted = {
        "source": request.source,
        "encoder": dict(request.encoder),
        "aligner": None if request.aligner is None else dict(request.aligner),
        "kind": request.kind,
        "dtype": request.dtype,
        "dimension": request.dimension,
        "skipped_files": [vars(skipped) for skipped in request.plan.skipped_files],
    }
    # As JSON on both sides: a manifest has been through it.
    same = _as_json(redacted(wanted)) == _as_json({name: getattr(current, name) for name in wanted})
    duplicates = sorted(one["unit"] for one in current.duplicate_units)
    return (
        same
        and current.names == config.names
        and duplicates == sorted(unit.key for unit in request.plan.duplicate_units)
        # Units that lost rows have other keys, and who loses them hangs on the files' order, which
        # no digest of the plan tells: those are looked at.
        and {one.unit for one in current.receipts} == {unit.key for unit in request.plan.units}
        and (
            current.ids_checked
            or not config.rejects.check_ids
            or not may_share_rows(request.corpus, request.plan)
        )
        and all(receipt.fingerprint == request.fingerprint for receipt in current.receipts)
        and whole(request.root, current.receipts)
        and (has_index(request.root, current) or not needs_index(request.kind))
    )


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _all_receipts(
    config: RunConfig,
    request: DatasetRequest,
    current: Manifest | None,
    lease: Lease,
    reporter: Reporter,
) -> tuple[list[Receipt], int, int]:
    """Write what is missing; returns all receipts in plan order, units kept and units retried."""
    units: Sequence[Unit] = request.plan.units
    duplicates = None
    known = current.receipts if current else ()
    flow = UnitFlow(config, request.name, request.corpus, len(units), reporter)
    try:
        if config.rejects.check_ids or looks_at_texts(request.corpus):
            units, duplicates = find_duplicates(
                request.corpus, request.plan, reporter, request.root, flow
            )
        receipts = dict(finished(request.root, units, request.fingerprint, known))
        todo = [unit for unit in units if unit.key not in receipts]
        reused = len(receipts)
        _say_planned(request, reporter, len(units), list(receipts.values()))
        if todo:
            checked = time.monotonic()
            with reporter.progress(request.name, request.plan.rows) as advance:
                advance(sum(unit.rows for unit in units if unit.key in receipts))
                for row in flow.run(todo, writing(config, request, duplicates)):
                    receipt = Receipt.from_json(row["receipt"])
                    receipts[receipt.unit] = receipt
                    advance(receipt.rows + receipt.quarantine_rows)
                    _say_written(request, reporter, receipt)
                    if time.monotonic() - checked >= _LEASE_CHECKED_EVERY_S:
                        lease.check()
                        checked = time.monotonic()
        flow.check()
    except RayError as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise cause from None
    missing = [unit for unit in units if unit.key not in receipts]
    assert not missing, f"{len(missing)} units came back without a receipt"
    if todo and not whole(request.root, [receipts[unit.key] for unit in todo]):
        raise ValueError(
            f"shards were written to {locations.redact_url(request.root)} on other machines and "
            "cannot be seen from here; output.path must be storage that every node shares"
        )
    return [receipts[unit.key] for unit in units], reused, flow.retried


def _say_written(request: DatasetRequest, reporter: Reporter, receipt: Receipt) -> None:
    reporter.event(
        "unit_written",
        name=request.name,
        unit=receipt.unit,
        rows=receipt.rows,
        rejected=receipt.quarantined,
        seconds=receipt.seconds,
    )


def _say_planned(
    request: DatasetRequest, reporter: Reporter, units: int, kept: Sequence[Receipt]
) -> None:
    reporter.event(
        "planned",
        name=request.name,
        units=units,
        reused=len(kept),
        rows=request.plan.rows,
        reused_rows=sum(receipt.rows for receipt in kept),
        reused_rejected=sum(receipt.quarantine_rows for receipt in kept),
    )


def _report(
    request: DatasetRequest,
    before: Manifest | None,
    manifest: Manifest,
    reused: int,
    retried: int,
    start: float,
    reporter: Reporter,
) -> FlowReport:
    keys = {receipt.unit for receipt in manifest.receipts}
    keys_before = {receipt.unit for receipt in before.receipts} if before else set()
    norms = Norms.of_receipts(manifest.receipts)
    report = FlowReport(
        name=request.name,
        rows=manifest.rows,
        rejected=sum(manifest.quarantined.values()),
        truncated=sum(receipt.truncated for receipt in manifest.receipts),
        units=manifest.units,
        reused_units=reused,
        added_units=len(keys - keys_before),
        removed_units=len(keys_before - keys),
        retried_units=retried,
        unchanged=before is not None and before.version == manifest.version,
        seconds=time.perf_counter() - start,
        path=request.root,
        version=manifest.version,
        norms=norms.to_mapping(),
    )
    if said := norms.sentence(manifest.rows, request.corpus.shown):
        reporter.say(said)
    if report.truncated:
        done = "encoded in parts" if request.embed.get("over_long") == "split" else "cut there"
        rows = "captions" if manifest.names.default else manifest.names.sources
        reporter.say(
            f"{report.truncated:,} {rows} are longer than the encoder's context and were {done}"
        )
    reporter.event("dataset_committed", **report.to_mapping())
    return report


def _check_rejects(config: RunConfig, request: DatasetRequest, receipts: Sequence[Receipt]) -> None:
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.quarantined)
    duplicated = sum(unit.rows for unit in request.plan.duplicate_units)
    if duplicated:
        counts["duplicate_id"] += duplicated
    # What a run is asked to leave out is no sign of a broken input.
    counts.pop(RejectReason.DUPLICATE_TEXT, None)
    if request.embed.get("over_long") == "reject":
        counts.pop(RejectReason.TOO_LONG, None)
    rejected, rows = sum(counts.values()), request.plan.rows + duplicated
    if rejected > config.rejects.max_share * rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        places = []
        if rejected > duplicated:
            places.append(f"rejected rows stand in {locations.redact_url(request.root)}/quarantine")
        if duplicated:
            places.append(
                f"{duplicated} are in slices that occur more than once word for word, and are kept "
                "nowhere but in the input"
            )
        raise ValueError(
            f"{rejected} of {rows} rows of {request.corpus.shown} cannot be used ({reasons}), more "
            f"than rejects.max_share={config.rejects.max_share:g} allows; "
            f"{'; '.join(places)}; mend the input or raise the limit"
        )
    Norms.of_receipts(receipts).require_plausible(request.corpus.shown)
