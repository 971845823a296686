"""The export: one part for each shard with rows, then what stands over them, then checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.export.card import CARD, CardFacts, card
from pipeline.export.layout import Layout
from pipeline.export.list_layouts import Llava, Revision
from pipeline.export.mosaic import Mosaic
from pipeline.export.parquet_layouts import ClipRetrieval, HuggingFace
from pipeline.export.source import Columns, Source, columns_of, open_source, read_shard
from pipeline.export.state import (
    CHECKSUMS,
    INDEX,
    STATE,
    Identity,
    PartReceipt,
    Target,
    checksums,
    entries_path,
    receipt_path,
)
from pipeline.export.webdataset import WebDataset
from pipeline.storage import locations
from pipeline.storage.lease import FOLDER as LEASE
from pipeline.storage.lease import Lease
from pipeline.storage.locations import redact_url
from pipeline.storage.manifest import content_digest
from pipeline.storage.receipts import Receipt
from pipeline.storage.streams import remove_empty_folder, write_stream

LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout
    for layout in (HuggingFace, WebDataset, Revision, Llava, Mosaic, ClipRetrieval)
}
_LEFTOVERS_OLDER_THAN_S = 3600

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: `reused` parts were there, `bytes` are of all parts and index files."""

    target: str
    format: str
    version: str
    parts: int
    reused: int
    rows: int
    bytes: int
    seconds: float

    def to_mapping(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that a worker needs to write a part."""

    root: str
    target: Target
    layout: Layout
    columns: Columns
    parts: int


def export(
    root: str,
    target: str,
    layout: Layout,
    *,
    version: str | None = None,
    facts: CardFacts | None = None,
    workers: int = 1,
    run_id: str = "",
    progress: Progress | None = None,
) -> ExportReport:
    """Write a version of a dataset, the current one by default, in a format; go on if interrupted.

    Parts that are whole are kept; a finished export is looked at by the sizes of its files. With
    `workers` above 1 as many processes write parts, each holding one shard. `progress` is called
    with (parts done, parts).

    Raises:
        ValueError: if the dataset cannot be read or exported so, a shard is missing or damaged, or
            the target holds something else, cannot be written, or is being written by another.
    """
    start = time.perf_counter()
    root, place = locations.absolute(root), Target(locations.absolute(target))
    if f"{place.url}/".startswith(f"{root}/"):
        raise ValueError(f"{redact_url(target)} is inside the dataset; give a folder beside it")
    source = open_source(root, version)
    layout = dataclasses.replace(layout, target=source.manifest.names.target)
    layout.check(source.schema)
    told = facts or CardFacts()
    identity = _identity(source, layout, told)
    job = _Job(
        root=root,
        target=place,
        layout=layout,
        columns=columns_of(source.schema),
        parts=len(source.receipts),
    )
    reused = job.parts
    finished = _finished(place, identity)
    if finished is None:
        with _leased(place.url, run_id) as lease:
            finished = _finished(place, identity)  # by another, until the lease was free
            if finished is None:
                parts, reused = _written_parts(job, source, identity, workers, lease, progress)
                lease.check()
                index = _write_index(job, source, parts, told)
                lease.check()
                listed = checksums(identity, parts, index)
                locations.write_bytes(place.file(CHECKSUMS), listed)
                finished = parts, index
    parts, index = finished
    locations.remove_files(place.file(path) for path in place.sizes() if path.endswith(".entries"))
    return ExportReport(
        target=redact_url(target),
        format=layout.name,
        version=identity.version,
        parts=len(parts),
        reused=reused,
        rows=sum(part.rows for part in parts),
        bytes=sum(part.bytes for part in parts) + index.bytes,
        seconds=round(time.perf_counter() - start, 3),
    )


def _identity(source: Source, layout: Layout, facts: CardFacts) -> Identity:
    options = facts.to_mapping()
    if layout.has_conversations:
        options["conversations"] = dataclasses.asdict(layout.settings)
        options["conversations"]["templates"] = [
            dataclasses.asdict(one) for one in layout.settings.templates
        ]
        options["seed"] = layout.seed
    return Identity(
        # Its name only: what an export holds is published, and a path tells of its maker's machine.
        dataset=redact_url(source.root).rstrip("/").rsplit("/", 1)[-1],
        version=source.manifest.version,
        content=content_digest(source.manifest),
        format=layout.name,
        parts=len(source.receipts),
        options=options,
    )


def _check(place: Target, identity: Identity) -> dict[str, int]:
    """Return the sizes of what is there; raises ValueError if that is no part of this export."""
    sizes = place.sizes()
    there = place.identity(sizes)
    if there is not None:
        there.check_same(identity, place.url)
    return sizes


def _finished(place: Target, identity: Identity) -> tuple[list[PartReceipt], PartReceipt] | None:
    """Return the receipts of an export that is there with all its files, None if it is not."""
    sizes = _check(place, identity)
    if CHECKSUMS not in sizes or INDEX not in sizes:
        return None
    parts = place.whole_parts(identity.parts, sizes)
    index = place.receipt(INDEX)
    if index is None or len(parts) < identity.parts or not index.is_whole(sizes):
        return None
    return [parts[number] for number in range(identity.parts)], index


@contextmanager
def _leased(target: str, run_id: str) -> Iterator[Lease]:
    """Hold the lease on a target; it leaves no file behind in what people will publish."""
    with Lease.acquire(target, run_id=run_id, command="anisoalign export") as lease:
        yield lease
        own = [one.url for one in locations.list_files(locations.join(target, LEASE))]
    # Another's, taken since, has a higher number; this one's is released, and nobody's.
    locations.remove_files(own)
    remove_empty_folder(locations.join(target, LEASE))


def _written_parts(
    job: _Job,
    source: Source,
    identity: Identity,
    workers: int,
    lease: Lease,
    progress: Progress | None,
) -> tuple[list[PartReceipt], int]:
    """Write the parts that are not there; returns all receipts and how many parts were."""
    place = job.target
    sizes = _check(place, identity)
    locations.remove_leftovers(place.url, _LEFTOVERS_OLDER_THAN_S)
    if not sizes:
        locations.write_bytes(place.file(STATE), identity.to_json())
    if CHECKSUMS in sizes:  # it was finished, and lost a file since
        locations.remove(place.file(CHECKSUMS))
    parts = {
        number: receipt
        for number, receipt in place.whole_parts(job.parts, sizes).items()
        if receipt.entries is None or sizes.get(entries_path(number)) == receipt.entries
    }
    reused = len(parts)
    missing = {
        number: receipt for number, receipt in enumerate(source.receipts) if number not in parts
    }
    if progress is not None:
        progress(reused, job.parts)
    for number, receipt in _writing(job, missing, workers):
        lease.check()
        parts[number] = receipt
        if progress is not None:
            progress(len(parts), job.parts)
    return [parts[number] for number in range(job.parts)], reused


def _writing(
    job: _Job, missing: Mapping[int, Receipt], workers: int
) -> Iterator[tuple[int, PartReceipt]]:
    """Write parts, here or in processes, and yield their receipts as they are done."""
    if workers == 1 or len(missing) < 2:
        for number, receipt in missing.items():
            yield number, _write_part(job, number, receipt)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
        try:
            futures = {
                pool.submit(_write_part, job, number, receipt): number
                for number, receipt in missing.items()
            }
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise ValueError(
                "a process that wrote parts was killed, out of memory perhaps; the same command "
                "goes on where it stopped, with fewer --workers in less memory"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _write_part(job: _Job, number: int, receipt: Receipt) -> PartReceipt:
    """Write the files of a part, and then its receipt."""
    shard = read_shard(job.root, receipt, job.columns)
    part = job.layout.part(shard, number, job.parts)
    if part.entries is not None:
        locations.write_bytes(job.target.file(entries_path(number)), part.entries)
    for path, data in part.files.items():
        locations.write_bytes(job.target.file(path), data)
    written = PartReceipt(
        rows=receipt.rows,
        files={
            path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in part.files.items()
        },
        entries=None if part.entries is None else len(part.entries),
        notes=part.notes,
    )
    locations.write_bytes(job.target.file(receipt_path(number)), written.to_json())
    return written


def _write_index(
    job: _Job, source: Source, parts: list[PartReceipt], facts: CardFacts
) -> PartReceipt:
    """Write the files that stand over all parts, and then their receipt."""

    def entries() -> Iterator[bytes]:
        for number in range(job.parts):
            yield locations.read_bytes(job.target.file(entries_path(number)))

    text = card(source.manifest, job.layout, facts).encode()
    files = {}
    notes = [part.notes for part in parts]
    for path, pieces in [*job.layout.index(notes, entries), (CARD, lambda: [text])]:
        written = write_stream(job.target.file(path), pieces)
        files[path] = (written.bytes, written.sha256)
    index = PartReceipt(rows=sum(part.rows for part in parts), files=files)
    locations.write_bytes(job.target.file(INDEX), index.to_json())
    return index
