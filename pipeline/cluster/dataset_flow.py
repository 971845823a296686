"""The flow that every dataset is written by: read, embed, write, commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray.data
from ray.exceptions import RayError

from pipeline import __version__
from pipeline.cluster.duplicates import find_duplicate_ids
from pipeline.cluster.session import IO_CPUS, actor_pool, user_error
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.schema import ENVELOPE
from pipeline.stages.embed import Embed
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import DuplicateIds
from pipeline.storage.manifest import Kind, Receipt, commit
from pipeline.storage.planning import Plan
from pipeline.storage.shards import finished


@dataclass(frozen=True)
class DatasetRequest:
    """What to write: a corpus through `embed` (arguments of `Embed`) to a dataset at `root`.

    `fingerprint` covers all that changes a shard's content beside its unit.
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


@dataclass(frozen=True)
class FlowReport:
    """What a flow did, for the summary: seconds are wall-clock time.

    `truncated` counts captions cut at the encoder's context length.
    """

    name: str
    rows: int
    rejected: int
    truncated: int
    units: int
    reused_units: int
    seconds: float
    path: str
    version: str

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**vars(self), "path": locations.redact_url(self.path)}


def software_versions() -> dict[str, str]:
    """Return the versions of what a dataset's content depends on."""
    names = ("torch", "open_clip_torch", "pyarrow", "numpy", "ray")
    return {"anisoalign": __version__, **{name: version(name) for name in names}}


def write_dataset(config: RunConfig, request: DatasetRequest, reporter: Reporter) -> FlowReport:
    """Write what is missing of a dataset and commit a version of it.

    Units whose shard and receipt exist are kept as they are. Nothing becomes visible to readers
    before every unit is written.

    Raises:
        ValueError: when the output cannot be written, an input file cannot be read, or the share
            of rejected rows passes `rejects.max_share`.
    """
    start = time.perf_counter()
    locations.check_writable(request.root)
    software = software_versions()
    units: Sequence[Unit] = request.plan.units
    duplicates = None
    try:
        if config.rejects.check_ids:
            units, duplicates = find_duplicate_ids(request.corpus, request.plan, reporter)
        receipts = dict(finished(request.root, units, request.fingerprint))
        todo = [unit for unit in units if unit.key not in receipts]
        reused = len(receipts)
        if todo:
            with reporter.progress(request.name, request.plan.rows) as advance:
                advance(sum(unit.rows for unit in units if unit.key in receipts))
                for receipt in _execute(config, request, todo, duplicates):
                    receipts[receipt.unit] = receipt
                    advance(receipt.rows + receipt.quarantine_rows)
    except RayError as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise ValueError(str(cause)) from error
    missing = [unit for unit in units if unit.key not in receipts]
    assert not missing, f"{len(missing)} units came back without a receipt"
    if todo and len(finished(request.root, units, request.fingerprint)) < len(units):
        raise ValueError(
            f"shards were written to {locations.redact_url(request.root)} on other machines and "
            "cannot be seen from here; output.path must be storage that every node shares"
        )
    ordered = [receipts[unit.key] for unit in units]
    _check_rejects(config, request, ordered)
    manifest = commit(
        request.root,
        kind=request.kind,
        dimension=request.dimension,
        dtype=request.dtype,
        receipts=ordered,
        source={**request.corpus.identity, "digest": request.plan.digest},
        config=config.to_mapping(),
        encoder=request.encoder,
        aligner=request.aligner,
        software=software,
        duplicate_units=request.plan.duplicate_units,
        skipped_files=[vars(skipped) for skipped in request.plan.skipped_files],
    )
    report = FlowReport(
        name=request.name,
        rows=manifest.rows,
        rejected=sum(manifest.quarantined.values()),
        truncated=sum(receipt.truncated for receipt in manifest.receipts),
        units=manifest.units,
        reused_units=reused,
        seconds=time.perf_counter() - start,
        path=request.root,
        version=manifest.version,
    )
    if report.truncated:
        reporter.say(f"{report.truncated:,} captions were cut at the encoder's context length")
    return report


def _execute(
    config: RunConfig,
    request: DatasetRequest,
    units: Sequence[Unit],
    duplicates: DuplicateIds | None,
) -> Any:
    """Yield the receipts of units as they are written, in any order."""
    pool = actor_pool(config, len(units))
    metadata = {"anisoalign.encoder": str(request.encoder.get("fingerprint", ""))}
    if request.aligner is not None:
        metadata["anisoalign.aligner"] = str(request.aligner["fingerprint"])
    rows = [{ENVELOPE: unit.to_json()} for unit in units]
    # batch_size=None with no target block size: one unit, one block, one batch, to the end. The
    # public map_batches refuses None beside a GPU (any number would bundle or split units), so the
    # stage on the GPU goes through the method behind it; tested with a declared GPU.
    dataset = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            ReadUnit(request.corpus, request.plan.dimension, duplicates),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=IO_CPUS,
        )
        .map_batches_internal(
            Embed,
            fn_constructor_kwargs={**request.embed, "threads": pool.threads},
            compute=pool.strategy,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        .map_batches(
            WriteShard(request.root, request.fingerprint, request.dtype, metadata),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=IO_CPUS,
        )
    )
    for row in dataset.iter_rows():
        yield Receipt.from_json(row["receipt"])


def _check_rejects(config: RunConfig, request: DatasetRequest, receipts: Sequence[Receipt]) -> None:
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.quarantined)
    duplicated = sum(unit.rows for unit in request.plan.duplicate_units)
    if duplicated:
        counts["duplicate_id"] += duplicated
    rejected, rows = sum(counts.values()), request.plan.rows + duplicated
    if rejected > config.rejects.max_share * rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise ValueError(
            f"{rejected} of {rows} rows of {request.corpus.shown} cannot be used ({reasons}), more "
            f"than rejects.max_share={config.rejects.max_share:g} allows; they stand in "
            f"{locations.redact_url(request.root)}/quarantine; mend the input or raise the limit"
        )
