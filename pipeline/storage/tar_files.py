"""WebDataset tars: consecutive files of one key are a row; cut by sample into ranges of bytes."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.formats import FORMATS
from pipeline.schema import RejectReason
from pipeline.storage import locations
from pipeline.storage.columns import RawRows, Rejects, binary_column
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.line_files import (
    SAMPLED_LINES,
    id_bytes,
    inferred_type,
    json_record,
    text_bytes,
    typed_column,
)
from pipeline.storage.locations import redact_url
from pipeline.storage.slices import (
    UNIT_BYTES,
    FileFacts,
    Slice,
    changed,
    combined,
    require_columns,
)
from pipeline.storage.tar_scan import TarScan, member_of, readable_tar, scan_members

_SAMPLED_BYTES = 2**20
_BUFFER_BYTES = 4 * 2**20
_IMAGES = frozenset(ending.removeprefix(".") for ending in FORMATS["images"].endings)
_DEFAULT_IMAGE, _DEFAULT_TEXT, _DEFAULT_ID = "image", "text", "id"
"""Names of columns that a user did not give: any image, `.txt` too, and the sample's key."""
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class _Sample:
    """A row: its key and its files' bytes by extension; `broken` if one extension is there twice.

    At planning only the bytes of `.json` are there.
    """

    key: str
    files: dict[str, bytes | memoryview] = field(default_factory=dict)
    broken: bool = False

    def add(self, extension: str, data: bytes | memoryview) -> None:
        """Add a file."""
        self.broken |= extension in self.files
        self.files[extension] = data


def cut_tar(corpus: Corpus, url: str, rows_per_shard: int) -> FileFacts:
    """Cut a tar each `rows_per_shard` samples, or UNIT_BYTES bytes, and look at its first samples.

    Raises:
        ValueError: if it is compressed, damaged, cut short, has no sample, or none of its first
            samples has what is asked for.
    """
    slices: list[Slice] = []
    samples: list[_Sample] = []
    key: str | None = None
    start = rows = byte_start = 0
    with readable_tar(url), locations.open_for_reading(url) as file:
        if file.read(len(max(_PACKED, key=len))).startswith(_PACKED):
            raise ValueError("it is compressed; unpack it to .tar (gunzip, zstd -d, ...)")
        file.seek(0)
        scan = TarScan(io.BufferedReader(file, _BUFFER_BYTES))

        def close(stop: int) -> None:
            slices.append(
                Slice(
                    start=start,
                    stop=start + rows,
                    digest=combined("samples", scan.stretch(stop), rows),
                    byte_start=byte_start,
                    byte_stop=stop,
                )
            )

        for member in scan_members(scan):
            if member.key != key:
                if key is None:
                    scan.stretch(member.offset)  # folders before the first sample are of none
                    byte_start = member.offset
                elif rows == rows_per_shard or member.offset - byte_start >= UNIT_BYTES:
                    close(member.offset)
                    start, rows, byte_start = start + rows, 0, member.offset
                key, rows = member.key, rows + 1
                if start + rows <= SAMPLED_LINES:
                    samples.append(_Sample(key))
            if start + rows <= SAMPLED_LINES and member.whole:
                size = member.data_stop - member.data_start
                read = member.extension == "json" and size <= _SAMPLED_BYTES
                samples[-1].add(member.extension, scan.data(size) if read else b"")
        if rows:
            close(scan.end)
    if not slices:
        raise ValueError(f"{redact_url(url)} has no sample: no file in it is named KEY.EXTENSION")
    return FileFacts(
        slices=tuple(slices), has_ids=True, passed_through=_checked_columns(corpus, url, samples)
    )


def _checked_columns(corpus: Corpus, url: str, samples: list[_Sample]) -> pa.Schema:
    """Check that samples have what is asked for; return the types of passed-through columns."""
    scratch = Rejects(len(samples))
    records = [_record(sample, row, scratch) for row, sample in enumerate(samples)]
    fields = sorted({str(name) for record in records for name in record})
    extensions = sorted({extension for sample in samples for extension in sample.files})
    wanted = [*corpus.passed_through]
    if corpus.id_column != _DEFAULT_ID:
        wanted.append(corpus.id_column)
    if corpus.modality == "text" and not any(_text_file(corpus, one) for one in samples):
        wanted.append(corpus.text_column)
    if wanted:
        require_columns(wanted, [*fields, *(f".{one}" for one in extensions)], url)
    if corpus.modality == "image":
        _check_images(corpus, url, samples, extensions)
    return pa.schema(
        [
            pa.field(name, inferred_type([record.get(name) for record in records]))
            for name in corpus.passed_through
        ]
    )


def _check_images(corpus: Corpus, url: str, samples: list[_Sample], extensions: list[str]) -> None:
    """Raise ValueError if no sample has the image asked for, or several that it could be."""
    if any(_image_file(corpus, sample) for sample in samples):
        return
    shown = f"its samples have {locations.listed([f'.{one}' for one in extensions])}"
    if corpus.image_column != _DEFAULT_IMAGE:
        raise ValueError(
            f"{redact_url(url)} has no image .{corpus.image_column.removeprefix('.')}; {shown}"
        )
    several = any(one.rpartition(".")[2] in _IMAGES for one in extensions)
    raise ValueError(
        f"{redact_url(url)} has {'several images' if several else 'no image'} a sample; {shown}: "
        "name one of them by image.image_column (jpg)"
    )


def _image_file(corpus: Corpus, sample: _Sample) -> str | None:
    """Return the extension of a sample's image: the one named, else the only one of an image."""
    named = corpus.image_column.lower().removeprefix(".")
    if named in sample.files:
        return named
    if named != _DEFAULT_IMAGE:
        return None
    # A mask such as .seg.png is an image only where there is no plain one.
    plain = [one for one in sample.files if one in _IMAGES]
    found = plain or [one for one in sample.files if one.rpartition(".")[2] in _IMAGES]
    return found[0] if len(found) == 1 else None


def _text_file(corpus: Corpus, sample: _Sample) -> str | None:
    """Return the extension of a sample's caption if it is a file of its own."""
    named = corpus.text_column.lower().removeprefix(".")
    if named in sample.files:
        return named
    return "txt" if named == _DEFAULT_TEXT and "txt" in sample.files else None


def read_tar(corpus: Corpus, unit: Unit) -> RawRows:
    """Return the samples of a range of a tar, fetched in one request.

    Malformed: without an image (or a caption), with a file twice, with a `.json` that is needed
    and is none or holds other types than the columns.

    Raises:
        ValueError: if the range was changed since it was planned.
    """
    data = locations.read_bytes(unit.path, unit.byte_start, unit.byte_stop)
    digest = hashlib.blake2b(data, digest_size=20).hexdigest()
    planned = unit.stop - unit.start
    if combined("samples", digest, planned) != unit.digest:
        raise changed(unit.path)
    with readable_tar(unit.path):
        samples = list(_samples(data))
    assert len(samples) == planned, "the same bytes were cut into other samples"
    rejects = Rejects(len(samples))
    for row, sample in enumerate(samples):
        if sample.broken:
            rejects.mark_row(row, RejectReason.MALFORMED)
    columns = _JsonColumns(samples, rejects)
    rows = RawRows(rejects=rejects, content=lambda row: _content(corpus, samples[row]))
    if corpus.id_column == _DEFAULT_ID:
        keys = [sample.key.encode("utf-8", "surrogateescape") for sample in samples]
        rows.ids = pa.array(keys, pa.binary())
    else:
        rows.ids = pa.array(columns.converted(corpus.id_column, id_bytes), pa.binary())
    if corpus.modality == "image":
        rows.image = _images(corpus, samples, rejects)
    else:
        rows.text = _texts(corpus, samples, columns)
    for one in unit.passed_through_schema:
        values = columns.converted(one.name, lambda value: value)
        rows.passed_through[one.name] = typed_column(values, one.type, rejects)
    return rows


def _samples(data: bytes) -> Iterator[_Sample]:
    """Yield the samples of a range of a tar; their files are views of it."""
    view, sample = memoryview(data), None
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for info in _infos(tar):
            member = member_of(info)
            if member is None:
                continue
            if sample is None or member.key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(member.key)
            if member.whole:
                sample.add(member.extension, view[member.data_start : member.data_stop])
    if sample is not None:
        yield sample


def _infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a range that was read as planned.

    A header for all that follows may stand at its end, and what follows be the next unit's.
    """
    while True:
        try:
            info = tar.next()
        except tarfile.ReadError:
            return
        if info is None:
            return
        yield info


def _content(corpus: Corpus, sample: _Sample) -> bytes | None:
    """Return what stands for a sample in quarantine: its image or caption, else its first file."""
    find = _image_file if corpus.modality == "image" else _text_file
    extension = find(corpus, sample) or ("json" if "json" in sample.files else None)
    first = next(iter(sample.files.values()), None)
    found = first if extension is None else sample.files[extension]
    return None if found is None else bytes(found)


def _images(corpus: Corpus, samples: list[_Sample], rejects: Rejects) -> pa.Array:
    images: list[bytes | memoryview | None] = []
    for row, sample in enumerate(samples):
        extension = _image_file(corpus, sample)
        images.append(None if extension is None else sample.files[extension])
        if extension is None:
            rejects.mark_row(row, RejectReason.MALFORMED)
    return binary_column(images)


def _texts(corpus: Corpus, samples: list[_Sample], columns: _JsonColumns) -> pa.Array:
    """Return captions as bytes, without the end of a file's last line; null where there is none."""
    files = [_text_file(corpus, sample) for sample in samples]
    texts: list[bytes | None] = [None] * len(samples)
    for row, extension in enumerate(files):
        if extension is not None:
            text = bytes(samples[row].files[extension]).removeprefix(_BYTE_ORDER_MARK)
            texts[row] = text.removesuffix(b"\n").removesuffix(b"\r")
    without = [row for row, extension in enumerate(files) if extension is None]
    if without:
        found = columns.converted(corpus.text_column, text_bytes, without)
        for row, text in zip(without, found, strict=True):
            texts[row] = text
    return pa.array(texts, pa.binary())


class _JsonColumns:
    """The fields of the samples' `.json`, parsed once, when the first is asked for."""

    def __init__(self, samples: list[_Sample], rejects: Rejects) -> None:
        self._samples = samples
        self._rejects = rejects
        self._records: dict[int, Mapping[str, Any]] = {}

    def converted(self, name: str, convert: Any, rows: list[int] | None = None) -> list[Any]:
        """Return a field of rows, all by default; null, marked malformed, where it is another."""
        values: list[Any] = []
        for row in range(len(self._samples)) if rows is None else rows:
            if row not in self._records:
                self._records[row] = _record(self._samples[row], row, self._rejects)
            try:
                values.append(convert(self._records[row].get(name)))
            except ValueError:
                values.append(None)
                self._rejects.mark_row(row, RejectReason.MALFORMED)
        return values


def _record(sample: _Sample, row: int, rejects: Rejects) -> dict[str, Any]:
    """Return a sample's `.json`, an empty one if it has none; one that is none is marked."""
    data = sample.files.get("json")
    return {} if data is None else json_record(bytes(data), row, rejects)
