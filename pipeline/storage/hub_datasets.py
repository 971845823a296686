"""Hugging Face data sets, copied once to Parquet: one copy that every worker and every night read.

A data set of the hub has no files that a worker elsewhere could be sent to slice by slice; a copy
has, and it stays what it is when the hub can't be reached.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import locations
from pipeline.storage.locations import redact_url
from pipeline.storage.receipts import parsed
from pipeline.storage.slices import combined

_MARK = "copied.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BATCH_ROWS = 1024
_PART_BYTES = 128 * 2**20
_GROUP_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set of the Hugging Face hub, or in a local folder (of files, or saved to disk).

    `columns` must be there, `optional` are copied where they are; `image` names the one of images.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    streaming: bool = True
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    image: str | None = None

    @property
    def shown(self) -> str:
        """The data set, its split and revision, for messages."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{redact_url(self.path)}{revision} ({self.split})"


@dataclass(frozen=True)
class Copy:
    """A copy's folder; `stale` says why it is not known to be of what the data set is now."""

    folder: str
    stale: str = ""


def copied(
    dataset: HubDataset,
    folder: str,
    run: str,
    progress: Callable[[int, int], None] | None = None,
) -> Copy:
    """Return the copy, below `folder`, of a data set as Parquet; makes it if need be.

    `progress` is called with the rows copied so far, twice. A copy is named by the data set's
    commit, or by its local files' names, sizes and times, and made again when these change; what
    they are is found out once for each `run`, so that all of it reads one copy. The copy before
    stays, since another run may read it; older ones are removed. While the hub does not answer,
    the last copy of the same data set serves.

    Raises:
        ValueError: if there is no such data set, split or column, or the hub does not answer and
            there is no copy.
    """
    read = {name: value for name, value in asdict(dataset).items() if name != "streaming"}
    same = combined("data set", read)[:8]
    try:
        state = _state_in(dataset, run) if run else _state(dataset)
    except ValueError as error:
        last = _copies(folder, same)
        if not last:
            raise
        return Copy(locations.join(folder, last[-1]), str(error))
    known = f"{same}-{combined('copied', read, state)[:16]}"
    target = locations.join(folder, known)
    if locations.exists(locations.join(target, _MARK)):
        return Copy(target)
    rows = 0
    for number, table in enumerate(_parts(_tables(dataset))):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", row_group_size=_GROUP_ROWS)
        locations.write_bytes(locations.join(target, f"{number:05d}.parquet"), sink.getvalue())
        rows += table.num_rows
        if progress is not None:
            progress(rows, rows)
    if not rows:
        raise ValueError(f"{dataset.shown} has no row")
    mark = {"dataset": redact_url(dataset.path), "rows": rows, "time": time.time()}
    locations.write_bytes(locations.join(target, _MARK), json.dumps(mark).encode())
    kept = {known, *[name for name in _copies(folder) if name != known][-1:]}
    locations.remove_files(
        entry.url
        for entry in locations.list_files(folder)
        if entry.name.split("/", 1)[0] not in kept
    )
    return Copy(target)


def _copies(folder: str, same: str = "") -> list[str]:
    """Return the names of whole copies, of the data set `same` if that is given, oldest first."""
    times: dict[str, float] = {}
    for entry in locations.list_files(folder):
        if entry.name.startswith(same) and entry.name.endswith(f"/{_MARK}"):
            mark = cast(dict[str, Any], parsed(locations.read_bytes(entry.url), "copy"))
            times[entry.name.split("/", 1)[0]] = mark["time"]
    return sorted(times, key=lambda name: (times[name], name))


@lru_cache(maxsize=256)
def _state_in(dataset: HubDataset, run: str) -> Any:
    """Return what changes when the data set does, as a run found it first."""
    del run
    return _state(dataset)


def _state(dataset: HubDataset) -> Any:
    """Return what changes when the data set does."""
    local = Path(dataset.path).expanduser()
    if local.is_dir():
        files = sorted(path for path in local.rglob("*") if path.is_file())
        states = [(str(path.relative_to(local)), path.stat()) for path in files]
        return [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    if dataset.revision is not None and _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    from huggingface_hub import HfApi

    if not _HUB_NAME.fullmatch(dataset.path) or local.is_file():
        return None  # opening it says what is wrong
    with _explained(dataset):
        return HfApi().dataset_info(dataset.path, revision=dataset.revision).sha


def _tables(dataset: HubDataset) -> Iterator[pa.Table]:
    """Yield the columns that are asked for, batch by batch, in order."""
    # Here, not above: importing it takes a second, and few corpora need it.
    import datasets

    datasets.disable_progress_bars()
    with _explained(dataset):
        rows = _opened(dataset)
        features = rows.features or {}
        there = list(features)
        missing = [name for name in dataset.columns if name not in there]
        if missing:
            raise ValueError(
                f"{dataset.shown} has no column {locations.listed(missing)}; it has "
                f"{locations.listed(there)}"
            )
        kept = [name for name in there if name in {*dataset.columns, *dataset.optional}]
        rows = rows.select_columns(kept)
        picture = datasets.Image(decode=False)
        if dataset.image is not None and isinstance(features[dataset.image], datasets.Image):
            rows = rows.cast_column(dataset.image, picture)
        for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            if dataset.image is not None and pa.types.is_struct(table.field(dataset.image).type):
                place = table.schema.get_field_index(dataset.image)
                stored = table.column(place).combine_chunks()
                # Of images in files of their own a table holds the paths alone.
                stored = picture.embed_storage(picture.cast_storage(stored)).field("bytes")
                table = table.set_column(place, dataset.image, stored)
            yield _plain(table)


def _plain(table: pa.Table) -> pa.Table:
    """Return a table without metadata, its strings as other sources have them."""
    kinds = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    schema = pa.schema([one.with_type(kinds.get(one.type, one.type)) for one in table.schema])
    return table.cast(schema.remove_metadata())


def _opened(dataset: HubDataset) -> Any:
    import datasets

    local = Path(dataset.path).expanduser()
    if local.is_file():
        raise ValueError(f"{dataset.shown} is a file; leave out the format")
    if local.is_dir() and dataset.revision is not None:
        raise ValueError(f"{dataset.shown} is a folder, which has no revisions; leave it out")
    saved = (local / "state.json").is_file()
    if saved or (local / "dataset_dict.json").is_file():
        if dataset.name is not None:
            raise ValueError(
                f"{dataset.shown} was saved to disk, without the name {dataset.name}; leave it out"
            )
        found = datasets.load_from_disk(str(local))
        splits = {str(found.split or "train"): found} if saved else dict(found)
        if dataset.split not in splits:
            raise ValueError(f"{dataset.shown} has the splits {locations.listed(list(splits))}")
        return splits[dataset.split]
    if not local.is_dir() and not _HUB_NAME.fullmatch(dataset.path):
        raise ValueError(f"{dataset.shown} is no folder here, and no name on the hub")
    found = datasets.load_dataset(
        str(local) if local.is_dir() else dataset.path,
        dataset.name,
        revision=dataset.revision,
        split=dataset.split,
        streaming=dataset.streaming,
    )
    # What a stream holds, only its first rows tell where the data set itself says nothing.
    return found._resolve_features() if found.features is None else found


def _parts(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables of about as many bytes as a file should have."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.nbytes for one in waiting) >= _PART_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


@contextmanager
def _explained(dataset: HubDataset) -> Iterator[None]:
    """Turn what the libraries raise, nearly anything, into one line that names the data set."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError or dataset.shown not in str(error):
            raise _unreadable(dataset, error) from error
        raise
    except Exception as error:
        raise _unreadable(dataset, error) from error


def _unreadable(dataset: HubDataset, error: Exception) -> ValueError:
    line = redact_url((str(error).splitlines() or [""])[0] or type(error).__name__)
    return ValueError(
        f"the Hugging Face data set {dataset.shown} cannot be read: {line}; check its name, "
        "revision and split, and the network; there is no folder of that name here"
        if not Path(dataset.path).expanduser().exists()
        else f"the Hugging Face data set {dataset.shown} cannot be read: {line}"
    )
