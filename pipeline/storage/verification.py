"""Verification: does a dataset still hold what its manifest says? Every problem names its file."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.schema import EMBEDDING, ID, QUARANTINE_SCHEMA, SCHEMA_VERSION
from pipeline.storage import locations
from pipeline.storage.duplicates import Hashes, SharedHashes, hash_ids
from pipeline.storage.id_index import ShardIds
from pipeline.storage.index_verification import index_problems
from pipeline.storage.locations import StoreError, redact_url
from pipeline.storage.manifest import (
    POINTER,
    VERSIONS,
    Manifest,
    content_digest,
    load_version,
    read_pointer,
)
from pipeline.storage.receipts import Receipt
from pipeline.storage.row_groups import embedding_groups, plain_embeddings
from pipeline.storage.shards import RECEIPTS, SCHEMA_KEY, UNIT_KEY, stored_embeddings

_WORKERS = 4
"""Shards in memory at once; one of 32,768 rows of 1,280 float32 is 170 MB."""
_NORM_TOLERANCE = {"float16": 2e-3, "float32": 1e-5}
_BLOCK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a file; `path` is relative to the dataset folder."""

    path: str
    what: str


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """The version looked at, its shards and rows by the manifest, and all that is wrong."""

    version: str
    shards: int
    rows: int
    problems: tuple[Problem, ...]


@dataclass(kw_only=True)
class _Findings:
    """What was found in one shard: problems by path, the ids' hashes (n, 2), its groups (g, 2)."""

    problems: list[Problem] = field(default_factory=list)
    hashes: Hashes = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    groups: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def add(self, path: str, what: str) -> None:
        self.problems.append(Problem(path=path, what=what))


def verify(
    root: str,
    progress: Callable[[int, int], None] | None = None,
    version: str | None = None,
) -> VerificationReport:
    """Check every file of a version, the current one by default; a problem does not end it.

    `progress` is called with (shards done, shards). Each shard is read whole, a few at a time; 16
    bytes an id stay in memory.

    Raises:
        ValueError: if there is no pointer or no manifest to go by.
    """
    findings = _Findings()
    if version is None:
        pointer = read_pointer(root)
        manifest, sha256 = load_version(root, pointer.version)
        where = f"{VERSIONS}/{pointer.version}.json"
        if sha256 != pointer.sha256:
            what = f"its sha256 is not the one in {POINTER}: changed after it was written"
            findings.add(where, what)
    else:
        manifest, _ = load_version(root, version)
        where = f"{VERSIONS}/{version}.json"
    for what in (*_wrong_totals(manifest), *_wrong_changes(root, manifest)):
        findings.add(where, what)
    shards: dict[str, ShardIds] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        found = pool.map(lambda receipt: _verify_shard(root, manifest, receipt), manifest.receipts)
        checked = zip(manifest.receipts, found, strict=True)
        for done, (receipt, one) in enumerate(checked, start=1):
            findings.problems += one.problems
            shards[receipt.path] = ShardIds(receipt.path, one.hashes, one.groups)
            if progress is not None:
                progress(done, len(manifest.receipts))
    damaged = {problem.path for problem in findings.problems}
    for path, what in index_problems(root, manifest, shards, damaged):
        findings.add(path, what)
    for path, count in _shared_ids(list(shards.values())):
        findings.add(path, f"{count} ids stand in another shard too")
    return VerificationReport(
        version=manifest.version,
        shards=len(manifest.receipts),
        rows=manifest.rows,
        problems=tuple(findings.problems),
    )


def _wrong_totals(manifest: Manifest) -> Iterator[str]:
    """Yield the manifest's totals that its own receipts do not add up to."""
    rows = sum(receipt.rows for receipt in manifest.receipts)
    if rows != manifest.rows:
        yield f"says {manifest.rows} rows, its shards' receipts say {rows}"
    if len(manifest.receipts) != manifest.units:
        yield f"says {manifest.units} units, but lists {len(manifest.receipts)}"
    totals: Counter[str] = Counter()
    for receipt in manifest.receipts:
        totals.update(receipt.quarantined)
    totals["duplicate_id"] += sum(int(one.get("rows", 0)) for one in manifest.duplicate_units)
    if +totals != Counter(manifest.quarantined):
        yield f"says {manifest.quarantined} rows quarantined, its receipts say {dict(+totals)}"
    for key, count in Counter(receipt.unit for receipt in manifest.receipts).items():
        if count > 1:
            yield f"lists unit {key} {count} times"
    if manifest.schema_version != SCHEMA_VERSION:
        yield f"has schema version {manifest.schema_version}, this program {SCHEMA_VERSION}"


def _wrong_changes(root: str, manifest: Manifest) -> Iterator[str]:
    """Yield what the manifest says of itself and its parent that its receipts do not bear out."""
    if not manifest.version.endswith(content_digest(manifest)[:8]):
        yield "is of other content than its name says: changed after it was written"
    if not manifest.changes:
        return
    lists = {change: set(units) for change, units in manifest.changes.items()}
    if sum(map(len, manifest.changes.values())) != len(set().union(*lists.values())):
        yield "names a unit twice among those added, removed and kept"
    if lists["added"] | lists["kept"] != {receipt.unit for receipt in manifest.receipts}:
        yield "the units that it says were added and kept are not those it lists"
    if manifest.parent is None:
        before: set[str] = set()
    else:
        try:
            parent, _ = load_version(root, manifest.parent)
        except ValueError:
            return  # collected since, or a problem of that version
        before = {receipt.unit for receipt in parent.receipts}
    if lists["removed"] | lists["kept"] != before:
        yield "the units that it says were removed and kept are not those of its parent"


def _verify_shard(root: str, manifest: Manifest, receipt: Receipt) -> _Findings:
    findings = _Findings()
    _check_receipt(root, receipt, findings)
    data = _whole_file(root, receipt.path, receipt.bytes, receipt.sha256, findings)
    if data is not None:
        parquet = _opened(data, receipt.path, receipt.rows, receipt.unit, findings)
        if parquet is not None:
            _check_rows(data, parquet, manifest, receipt, findings)
            if receipt.path not in {problem.path for problem in findings.problems}:
                findings.groups = embedding_groups(io.BytesIO(data), parquet)
    _check_quarantine(root, receipt, findings)
    return findings


def _check_receipt(root: str, receipt: Receipt, findings: _Findings) -> None:
    """Compare receipts/NAME.json, where it is there, with the manifest's receipt."""
    name = receipt.path.rsplit("/", 1)[-1].removesuffix(".parquet")
    where = f"{RECEIPTS}/{name}.json"
    try:
        stored = Receipt.from_json(locations.read_bytes(locations.join_inside(root, where)))
    except FileNotFoundError:
        return
    except StoreError as error:
        findings.add(where, str(error))
        return
    except ValueError as error:
        findings.add(where, f"the receipt of {receipt.path} is damaged: {error}")
        return
    if stored == receipt:
        return
    ours, theirs = vars(receipt), vars(stored)
    differing = [
        f"{key} {theirs[key]} (manifest: {ours[key]})" for key in ours if ours[key] != theirs[key]
    ]
    findings.add(
        where, f"the receipt of {receipt.path} differs from the manifest's: {', '.join(differing)}"
    )


def _whole_file(
    root: str, path: str, size: int, sha256: str | None, findings: _Findings
) -> bytes | None:
    """Return a file's bytes; None, with the problem added, if it is missing."""
    try:
        data = locations.read_bytes(locations.join_inside(root, path))
    except FileNotFoundError:
        findings.add(path, "missing")
        return None
    except ValueError as error:
        findings.add(path, str(error))
        return None
    if len(data) != size:
        findings.add(path, f"has {len(data)} bytes, its receipt says {size}")
    elif hashlib.sha256(data).hexdigest() != sha256:
        findings.add(path, "its sha256 is not its receipt's: its bytes were changed")
    return data


def _opened(
    data: bytes, path: str, rows: int, unit: str, findings: _Findings
) -> pq.ParquetFile | None:
    """Return a shard as Parquet after comparing its row count and metadata with its receipt."""
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        findings.add(path, f"not readable as Parquet: {_line(error)}")
        return None
    if parquet.metadata.num_rows != rows:
        findings.add(path, f"has {parquet.metadata.num_rows} rows, its receipt says {rows}")
    notes = parquet.schema_arrow.metadata or {}
    version = notes.get(SCHEMA_KEY.encode(), b"none").decode("utf-8", "replace")
    if version != str(SCHEMA_VERSION):
        findings.add(path, f"has schema version {version}, not {SCHEMA_VERSION}")
    key = notes.get(UNIT_KEY.encode(), b"none").decode("utf-8", "replace")
    if key != unit:
        findings.add(path, f"is of unit {key}, its receipt of {unit}")
    return parquet


def _check_rows(
    data: bytes,
    parquet: pq.ParquetFile,
    manifest: Manifest,
    receipt: Receipt,
    findings: _Findings,
) -> None:
    """Check a shard's embeddings (type, finite, unit norm) and ids (there, sorted, unique)."""
    path = receipt.path
    if not {ID, EMBEDDING} <= set(parquet.schema_arrow.names):
        findings.add(path, f"has no column {ID} and {EMBEDDING}")
        return
    # Where the bytes are those of the receipt, they are as Arrow wrote them.
    damaged = any(problem.path == path for problem in findings.problems)
    try:
        table = parquet.read(columns=[ID, EMBEDDING] if damaged else [ID])
        table.validate(full=True)
        _check_embeddings(data, parquet, manifest, damaged, path, findings)
    except (pa.ArrowException, OSError) as error:
        findings.add(path, f"not readable as Parquet: {_line(error)}")
        return
    ids = table.column(ID)
    if ids.type != pa.string() or ids.null_count:
        findings.add(path, "has ids that are null or no strings")
        return
    if len(ids) > 1:
        if pc.any(pc.greater(ids[:-1], ids[1:])).as_py():
            findings.add(path, "its ids are not sorted")
        repeated = len(ids) - len(pc.unique(ids))
        if repeated:
            findings.add(path, f"{repeated} ids stand in it more than once")
    findings.hashes = hash_ids(pc.unique(ids).to_pylist())


def _check_embeddings(
    data: bytes,
    parquet: pq.ParquetFile,
    manifest: Manifest,
    damaged: bool,
    path: str,
    findings: _Findings,
) -> None:
    """Add a problem for embeddings of another type, null, not finite, or not of unit norm.

    Norms are free where the manifest's aligner says so.

    Raises:
        ArrowException: if they cannot be decoded.
    """
    kind = parquet.schema_arrow.field(EMBEDDING).type
    value = {"float16": pa.float16(), "float32": pa.float32()}.get(manifest.dtype)
    if (
        not pa.types.is_fixed_size_list(kind)
        or kind.list_size != manifest.dimension
        or kind.value_type != value
    ):
        said = f"{manifest.dtype}[{manifest.dimension}]"
        findings.add(path, f"has embeddings of type {kind}, the manifest says {said}")
        return
    not_finite = off_norm = 0
    file = io.BytesIO(data)
    for index in range(parquet.num_row_groups):
        values = None if damaged else plain_embeddings(file, parquet, index)
        if values is None:
            table = parquet.read_row_group(index, columns=[EMBEDDING])
            if table.column(EMBEDDING).null_count:
                findings.add(path, "has null embeddings")
                return
            values = stored_embeddings(table)
        for start in range(0, len(values), _BLOCK_ROWS):
            block = values[start : start + _BLOCK_ROWS].astype(np.float64)
            squares = np.einsum("nd,nd->n", block, block)
            finite = np.isfinite(squares)  # no float16 or float32 is too large for its square
            off = np.abs(np.sqrt(squares[finite]) - 1.0) > _NORM_TOLERANCE[manifest.dtype]
            not_finite += int((~finite).sum())
            off_norm += int(off.sum())
    if not_finite:
        findings.add(path, f"{not_finite} embeddings are not finite")
    if off_norm and manifest.unit_rows:
        findings.add(path, f"{off_norm} embeddings are not of unit norm")


def _check_quarantine(root: str, receipt: Receipt, findings: _Findings) -> None:
    counted = sum(receipt.quarantined.values())
    path = receipt.quarantine_path
    if counted != receipt.quarantine_rows:
        findings.add(
            receipt.path,
            f"its receipt says {receipt.quarantine_rows} quarantined rows, by reason {counted}",
        )
    if path is None:
        if counted:
            findings.add(receipt.path, f"{counted} rows quarantined, but no quarantine shard")
        return
    size, sha256 = receipt.quarantine_bytes, receipt.quarantine_sha256
    data = _whole_file(root, path, size, sha256, findings)
    if data is None:
        return
    parquet = _opened(data, path, receipt.quarantine_rows, receipt.unit, findings)
    if parquet is None:
        return
    try:
        table = parquet.read()
    except (pa.ArrowException, OSError) as error:
        findings.add(path, f"not readable as Parquet: {_line(error)}")
        return
    if not table.schema.equals(QUARANTINE_SCHEMA):
        findings.add(path, f"has columns {table.column_names}, not those of a quarantine shard")
        return
    counts = Counter(table.column("reason").to_pylist())
    if counts != Counter(receipt.quarantined):
        findings.add(path, f"holds {dict(counts)}, its receipt says {receipt.quarantined}")


def _shared_ids(shards: Sequence[ShardIds]) -> Iterator[tuple[str, int]]:
    """Yield (path, count) of the shards with ids that an earlier shard has."""
    shared = SharedHashes.from_units([(shard.path, shard.hashes) for shard in shards])
    for shard in shards if len(shared) else []:
        count = int(shared.rejected(shard.path, shard.hashes).sum())
        if count:
            yield shard.path, count


def _line(error: BaseException) -> str:
    return redact_url((str(error).splitlines() or [type(error).__name__])[0])
