"""The plan of a run: a corpus cut into units, duplicates and unreadable files named."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.formats import ARRAYS, FORMATS, Format
from pipeline.schema import EMBEDDING
from pipeline.storage import locations
from pipeline.storage.array_files import cut_npy, cut_npz, cut_safetensors
from pipeline.storage.clip_retrieval import cut_clip_retrieval
from pipeline.storage.companions import companion_file
from pipeline.storage.corpus import (
    Corpus,
    Unit,
    can_hold,
    carries_embeddings,
    corpus_files,
    schema_text,
)
from pipeline.storage.csv_files import cut_csv
from pipeline.storage.file_facts import FactsCache
from pipeline.storage.image_files import READERS, check_size, cut_image, grouped
from pipeline.storage.line_files import cut_jsonl, cut_text
from pipeline.storage.locations import FileEntry, StoreError, redact_url
from pipeline.storage.manifest import open_manifest
from pipeline.storage.mixing import mixed_units, quotas
from pipeline.storage.parquet_files import cut_parquet
from pipeline.storage.pickle_files import cut_pickle
from pipeline.storage.receipts import Receipt
from pipeline.storage.slices import FileFacts, Slice, combined, identity_of
from pipeline.storage.tar_files import cut_tar

_WORKERS = 8
_CHECKS = 2
"""Counted up when rows are rejected by other rules, so that no unit of the old ones is kept."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file that could not be read and was passed over, and why, in one line."""

    path: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The units of a corpus in order of path and position.

    `duplicate_units` have the content of a unit that is kept; their `rows` count as rejects.
    `rows` is of the kept units; `dimension` the width of the first embedding, None if the corpus
    holds none; `digest` is of the units' keys, whatever their order.
    """

    units: tuple[Unit, ...]
    duplicate_units: tuple[Unit, ...]
    skipped_files: tuple[SkippedFile, ...]
    rows: int
    dimension: int | None
    has_ids: bool
    digest: str


def plan(
    corpus: Corpus,
    rows_per_shard: int,
    on_unreadable_file: Literal["fail", "skip"] = "fail",
    progress: Callable[[int, int], None] | None = None,
    cache: str | None = None,
    remember: bool = True,
    most_files: int | None = None,
) -> Plan:
    """Cut a corpus into units of about `rows_per_shard` rows; every file is read once for digests.

    `progress` is called with (files done, files). Ids are derived if no file of the corpus names
    its rows. `cache` is the URL of a file that remembers what was learnt: files that did not
    change since are not read again; `remember` says whether it is written. `most_files` leaves
    out all files but the first so many.

    Raises:
        StoreError: if a store fails, whatever `on_unreadable_file` is.
        ValueError: if there is nothing to read, columns are missing or of the wrong type, or a
            file is empty or damaged and `on_unreadable_file` is "fail".
    """
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
    if corpus.parts:
        return _mixed(corpus, rows_per_shard, on_unreadable_file, progress, cache, remember)
    found, entries = corpus_files(corpus)
    entries = entries[:most_files]
    _check_fit(corpus, found)
    skipped: tuple[SkippedFile, ...] = ()
    if found == "dataset":
        files = _dataset_files(corpus)
    else:
        if corpus.ids_path is not None and (found not in ARRAYS or len(entries) != 1):
            raise ValueError(
                f"an ids file belongs to one .npy, .npz or .safetensors; {corpus.shown} is not one"
            )
        remembered = FactsCache(cache, corpus, found, rows_per_shard, entries) if cache else None
        skip = on_unreadable_file == "skip"
        try:
            files, skipped = _cut_files(
                corpus, found, entries, rows_per_shard, skip, progress, remembered
            )
        finally:
            if remembered is not None and remember:
                remembered.save()
    if found == "images":
        files = [grouped(corpus, files, rows_per_shard)]
    has_ids = any(facts.has_ids for _, facts, _ in files)
    dimension = next((facts.dimension for _, facts, _ in files if facts.dimension), None)
    _check_agreement(corpus, found, files, dimension)
    passed = _passed_through(files)
    units: dict[str, Unit] = {}
    duplicates: list[Unit] = []
    for url, facts, identity in files:
        for one in facts.slices:
            unit = _unit(corpus, found, url, facts, one, has_ids, dimension, passed, identity)
            if unit.key in units:
                duplicates.append(unit)
            else:
                units[unit.key] = unit
    if not units:
        raise ValueError(f"{corpus.shown} has no row")
    return Plan(
        units=tuple(units.values()),
        duplicate_units=tuple(duplicates),
        skipped_files=skipped,
        rows=sum(unit.rows for unit in units.values()),
        dimension=dimension,
        has_ids=has_ids,
        digest=combined(*sorted(units)),
    )


def _mixed(
    corpus: Corpus,
    rows_per_shard: int,
    on_unreadable_file: Literal["fail", "skip"],
    progress: Callable[[int, int], None] | None,
    cache: str | None,
    remember: bool,
) -> Plan:
    """Return the plan of a mixed corpus, each part's files remembered by themselves."""
    plans = []
    for part in corpus.parts:
        kept = None if cache is None else f"{cache.removesuffix('.json')}-{part.name}.json"
        try:
            plans.append(
                plan(part.corpus, rows_per_shard, on_unreadable_file, progress, kept, remember)
            )
        except StoreError:
            raise
        except ValueError as error:
            raise ValueError(f"the source {part.name}: {error}") from error
    widths = {one.dimension for one in plans}
    if len(widths) > 1:
        named = zip(corpus.parts, plans, strict=True)
        said = [f"{part.name} {one.dimension or 'has none'}" for part, one in named]
        raise ValueError(
            f"{corpus.shown} has embeddings of several widths, or of some parts alone "
            f"({locations.listed(said)}); all sources have them, of one width, or none has"
        )
    units = mixed_units(corpus, [one.units for one in plans])
    taken = quotas(corpus.parts, [one.rows for one in plans])
    whole = [one for one, rows in zip(plans, taken, strict=True) if rows == one.rows]
    return Plan(
        units=tuple(units),
        # Of parts not taken whole nothing is missing where a slice occurs again.
        duplicate_units=tuple(unit for one in whole for unit in one.duplicate_units),
        skipped_files=tuple(file for one in plans for file in one.skipped_files),
        rows=sum(unit.rows for unit in units),
        dimension=widths.pop(),
        has_ids=any(one.has_ids for one in plans),
        digest=combined(*sorted(unit.key for unit in units)),
    )


_ONE_WIDTH = frozenset({*ARRAYS, "clip-retrieval"})
"""Formats whose files have embeddings of one width each."""

Files = Sequence[tuple[str, FileFacts, str | None]]
"""URLs, what is known of them, and what they were known by before that was looked at."""


def _check_fit(corpus: Corpus, found: Format) -> None:
    """Raise ValueError if a format cannot hold what the corpus asks of it."""
    traits = FORMATS[found]
    named = corpus.embedding_column is not None
    if named and traits.embeddings == "never":
        raise ValueError(f"{corpus.shown} is {found}; it holds no embeddings")
    if not can_hold(corpus, found):
        what, fitting = ("captions", "texts") if corpus.modality == "text" else ("images",) * 2
        holding = [name for name, one in FORMATS.items() if getattr(one, fitting)]
        raise ValueError(
            f"{corpus.shown} is {found}; it holds no {what}, which are read from "
            f"{locations.listed(holding)}"
        )
    if corpus.passed_through and not traits.columns:
        raise ValueError(
            f"{corpus.shown} is {found}; it has no columns to pass through "
            f"({locations.listed(corpus.passed_through)})"
        )


CUTS: dict[Format, Callable[[Corpus, str, int], FileFacts]] = {
    "text": cut_text,
    "jsonl": cut_jsonl,
    "csv": cut_csv,
    "parquet": cut_parquet,
    "images": cut_image,
    "webdataset": cut_tar,
    "npy": cut_npy,
    "npz": cut_npz,
    "safetensors": cut_safetensors,
    "pickle": cut_pickle,
    "clip-retrieval": cut_clip_retrieval,
}
"""How a file of each format is cut: of a corpus, the one at a URL, in units of so many rows."""


def _cut_files(
    corpus: Corpus,
    found: Format,
    entries: Sequence[FileEntry],
    rows_per_shard: int,
    skip: bool,
    progress: Callable[[int, int], None] | None,
    remembered: FactsCache | None,
) -> tuple[Files, tuple[SkippedFile, ...]]:
    def cut(entry: FileEntry) -> FileFacts:
        return CUTS[found](corpus, entry.url, rows_per_shard)

    def identity(entry: FileEntry) -> str | None:
        listed = entry if entry.size >= 0 else locations.file_entry(entry.url)
        return identity_of(listed, companion_file(corpus, found, entry.url))

    def facts_of(entry: FileEntry) -> tuple[str, FileFacts, str | None] | ValueError:
        try:
            if found == "images":
                check_size(entry)
            before = identity(entry)
            facts = cut(entry) if remembered is None else remembered.facts(entry, cut)
        except ValueError as error:
            return error
        except FileNotFoundError as error:
            return ValueError(str(error))
        return entry.url, facts, before

    files: list[tuple[str, FileFacts, str | None]] = []
    skipped: list[SkippedFile] = []
    remote_images = found == "images" and not locations.is_local(corpus.path)
    workers = READERS if remote_images else min(_WORKERS, (os.cpu_count() or 1) * 2)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(facts_of, entries)
        for done, (entry, result) in enumerate(zip(entries, results, strict=True), start=1):
            if not isinstance(result, ValueError):
                files.append(result)
            elif skip and not isinstance(result, StoreError):
                skipped.append(SkippedFile(path=redact_url(entry.url), why=str(result)))
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise result
            if progress is not None:
                progress(done, len(entries))
    if not files:
        raise ValueError(f"no file of {corpus.shown} can be read; the first: {skipped[0].why}")
    return files, tuple(skipped)


def _dataset_files(corpus: Corpus) -> Files:
    """Return the shards of our own dataset's current version, one slice each, unread."""
    root = locations.absolute(corpus.path)
    manifest = open_manifest(root)
    kind = manifest.names.instead(manifest.kind)
    if kind != f"{corpus.name}-embeddings":
        raise ValueError(f"the dataset {corpus.shown} holds {kind}, not {corpus.name}-embeddings")
    receipts = [receipt for receipt in manifest.receipts if receipt.rows]
    if not receipts:
        raise ValueError(f"the dataset {corpus.shown} has no row")
    passed = pa.schema([])
    if corpus.passed_through:
        first = locations.join_inside(root, receipts[0].path)
        stored = dataclasses.replace(corpus, embedding_column=corpus.embedding_column or EMBEDDING)
        passed = cut_parquet(stored, first, manifest.rows).passed_through
    return [
        (
            locations.join_inside(root, receipt.path),
            FileFacts(
                slices=(_shard_slice(receipt),),
                has_ids=True,
                dimension=manifest.dimension,
                passed_through=passed,
            ),
            None,  # a shard is named by its content
        )
        for receipt in receipts
    ]


def _shard_slice(receipt: Receipt) -> Slice:
    """Return a whole shard as a slice that names what it was made from, if its receipt does."""
    whole = Slice(start=0, stop=receipt.rows, digest=receipt.sha256)
    source = [receipt.source.get(name) for name in ("path", "start", "stop")]
    match source:
        case [str(path), int(start), int(stop)]:
            return dataclasses.replace(
                whole, source_path=path, source_start=start, source_stop=stop
            )
    return whole


def _check_agreement(corpus: Corpus, found: Format, files: Files, dimension: int | None) -> None:
    """Raise ValueError if files disagree on what only a file as a whole can have."""
    if carries_embeddings(corpus, found) and dimension is None:
        raise ValueError(f"{corpus.shown} has no embedding in its first rows")
    first_url, first, _ = files[0]
    for url, facts, _ in files[1:]:
        if found in _ONE_WIDTH and facts.dimension != first.dimension:
            raise ValueError(
                f"{redact_url(url)} has {facts.dimension}-dimensional embeddings, "
                f"{redact_url(first_url)} {first.dimension}-dimensional ones"
            )
        if found in {*_ONE_WIDTH, "parquet"} and facts.has_ids != first.has_ids:
            without = first_url if facts.has_ids else url
            raise ValueError(
                f"{redact_url(without)} does not name its rows while other files of "
                f"{corpus.shown} do; give all of them ids or none"
            )


def _passed_through(files: Files) -> str:
    """Return the passed-through types of the first file, base64 of an Arrow schema; "" if none."""
    found = files[0][1].passed_through
    if found is None or not len(found):
        return ""
    return schema_text(found)


def _unit(
    corpus: Corpus,
    found: Format,
    url: str,
    facts: FileFacts,
    one: Slice,
    has_ids: bool,
    dimension: int | None,
    passed: str,
    identity: str | None,
) -> Unit:
    unit = Unit(
        key="",
        path=url,
        format=found,
        start=one.start,
        stop=one.stop,
        rows=one.stop - one.start,
        digest=one.digest,
        has_ids=has_ids,
        byte_start=one.byte_start,
        byte_stop=one.byte_stop,
        ids_path=facts.ids_path,
        dimension=dimension,
        passed_through=passed,
        source_path=one.source_path,
        source_start=one.source_start,
        source_stop=one.source_stop,
        identity=identity,
        members=one.members,
    )
    return dataclasses.replace(unit, key=_key(corpus, unit))


def _key(corpus: Corpus, unit: Unit) -> str:
    """Return the digest of a slice's content and of everything that says what is read from it."""
    columns: list[object] = []
    if unit.format not in {"text", "npy", "images"}:
        columns = [
            corpus.id_column if unit.has_ids else None,
            corpus.text_column,
            corpus.image_column if corpus.modality == "image" else None,
            corpus.embedding_column,
            [[field.name, str(field.type)] for field in unit.passed_through_schema],
        ]
    if unit.format != "dataset":
        columns.append([_CHECKS, corpus.max_text_bytes])
        if corpus.unicode != "none" or corpus.unique_texts:
            columns.append([corpus.unicode, corpus.unique_texts])
    return combined("unit", unit.format, unit.digest, corpus.modality, unit.has_ids, columns)
