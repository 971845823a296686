"""Folders of image files: a file is a row, its name below the folder is the row's id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects, binary_column
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.locations import FileEntry, redact_url
from pipeline.storage.slices import UNIT_BYTES, FileFacts, Slice, changed, combined

READERS = 16
"""Files read at once: most of what a small object costs is waiting for its first byte."""


def check_size(entry: FileEntry) -> None:
    """Refuse a file that no unit could hold.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is larger than a unit of images may be.
    """
    size = entry.size if entry.size >= 0 else locations.file_entry(entry.url).size
    if size > UNIT_BYTES:
        raise ValueError(
            f"{redact_url(entry.url)} has {size >> 20} MiB; an image file of more than "
            f"{UNIT_BYTES >> 20} MiB is not read: make it smaller or take it out"
        )


def cut_image(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Return an image file's digest and size, as a slice of one row; `grouped` makes units of them.

    Raises:
        FileNotFoundError: if it is gone.
        ValueError: if it cannot be read.
    """
    del corpus, rows_per_shard
    data = locations.read_bytes(url)
    one = Slice(start=0, stop=1, digest=_digest(data), byte_stop=len(data))
    return FileFacts(slices=(one,), has_ids=True)


def grouped(
    corpus: Corpus, files: Sequence[tuple[str, FileFacts, str | None]], rows_per_shard: int
) -> tuple[str, FileFacts, None]:
    """Return the folder of image files, cut into groups in order of their names below it.

    A group has at most `rows_per_shard` files and, unless it has only one, UNIT_BYTES bytes.

    Raises:
        ValueError: if a file does not lie below the folder that the corpus names.
    """
    folder = _common_folder(corpus, [url for url, _, _ in files])
    named = sorted((url[len(folder) + 1 :], facts.slices[0]) for url, facts, _ in files)
    slices: list[Slice] = []
    group: list[tuple[str, Slice]] = []
    size = start = 0

    def close() -> None:
        slices.append(
            Slice(
                start=start,
                stop=start + len(group),
                digest=_group_digest([(name, one.digest) for name, one in group]),
                members=tuple(name for name, _ in group),
            )
        )

    for name, one in named:
        if group and (len(group) == rows_per_shard or size + one.byte_stop > UNIT_BYTES):
            close()
            start, size, group = start + len(group), 0, []
        group.append((name, one))
        size += one.byte_stop
    close()
    return folder, FileFacts(slices=tuple(slices), has_ids=True), None


def _common_folder(corpus: Corpus, urls: Sequence[str]) -> str:
    """Return the folder that files are named from: the one given, or the part before a glob."""
    url = locations.absolute(corpus.path).rstrip("/")
    if url in urls:
        url = url.rpartition("/")[0]
    elif not all(one.startswith(f"{url}/") for one in urls):
        url = re.split(r"[*?\[]", url, maxsplit=1)[0].rpartition("/")[0]
    for one in urls:
        if not one.startswith(f"{url}/"):
            raise ValueError(f"{redact_url(one)} does not lie below {redact_url(url)}; name it")
    return url


def read_images(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the files of a group as they are, each with its name as its id.

    Raises:
        ValueError: if one is gone, cannot be read, or was changed since it was planned.
    """
    del corpus

    def read(member: str) -> bytes:
        url = locations.join(unit.path, member)
        try:
            return locations.read_bytes(url)
        except FileNotFoundError as error:
            raise ValueError(
                f"{redact_url(url)} is gone since the run was planned; start it again"
            ) from error

    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(read, unit.members))  # the first that fails ends the others
    digests = [_digest(content) for content in contents]
    if _group_digest(list(zip(unit.members, digests, strict=True))) != unit.digest:
        first, last = unit.members[0], unit.members[-1]
        raise changed(f"an image file of {unit.path} (of those from {first} to {last})")
    images = binary_column(contents)
    return RawRows(
        rejects=Rejects(len(images)),
        content=lambda row: images[row].as_py(),
        ids=pa.array(unit.members, pa.string()),
        image=images,
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _group_digest(named: list[tuple[str, str]]) -> str:
    return combined("images", named)
