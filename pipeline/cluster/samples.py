"""Rows of a user's own corpus, written again as corpora of any size and the same format."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.formats import Format
from pipeline.schema import EMBEDDING, ID, IMAGE, REJECT, SOURCE, TEXT
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, corpus_files
from pipeline.storage.mixing import quotas
from pipeline.storage.planning import Plan, plan
from pipeline.storage.reading import read_unit
from pipeline.storage.shards import embeddings_of

_MOST_ROWS = 65_536
_MOST_BYTES = 128 * 2**20
"""A sample that is larger stays in memory too long; what is written of it is repeated."""
_UNIT_ROWS = 4_096
_UNIT_IMAGES = 256
_MOST_FILES = 16
_MOST_IMAGES = 1_024
"""Of a folder of image files, where a file is a row."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Usable rows of a corpus; `format` is that of its files, `files` how many it has.

    `corpus_rows` is how many rows the corpus seems to have, by the sizes of the files not read.
    """

    corpus: Corpus
    format: Format
    rows: pa.Table
    has_ids: bool
    dimension: int | None
    files: int
    corpus_rows: int

    @property
    def rewritten(self) -> bool:
        """Whether it is written as Parquet under our own names, its format being none to write."""
        return self.format not in _WRITERS

    @property
    def row_bytes(self) -> float:
        """Mean bytes of a row in memory."""
        return float(self.rows.nbytes) / self.rows.num_rows


def read_sample(corpus: Corpus) -> Sample:
    """Return the first usable rows of a corpus, of any format.

    Raises:
        ValueError: if it cannot be read, or its first files have no usable row.
    """
    if corpus.parts:
        return _mixed_sample(corpus)
    found, entries = corpus_files(corpus)
    pictures = corpus.modality == "image" and not corpus.holds_embeddings
    unit_rows = _UNIT_IMAGES if pictures else _UNIT_ROWS
    # Planning reads a file as a whole; of many files the first are enough.
    if found == "images":
        parts = [(corpus, plan(corpus, unit_rows, most_files=_MOST_IMAGES))]
        counted = len(entries)
    elif len(entries) <= 1:
        parts = [(corpus, plan(corpus, unit_rows))]
        counted = parts[0][1].rows
    else:
        parts, counted, size = [], 0, 0
        for entry in entries[:_MOST_FILES]:
            part = dataclasses.replace(corpus, path=entry.url, format=found)
            parts.append((part, plan(part, unit_rows)))
            counted, size = counted + parts[-1][1].rows, size + entry.size
            if counted >= _MOST_ROWS:
                break
        if len(parts) < len(entries):
            counted = round(counted * sum(entry.size for entry in entries) / max(size, 1))
    rows = _usable_rows(parts)
    if not rows.num_rows:
        raise ValueError(f"no row of {corpus.shown} can be used")
    first = parts[0][1]
    return Sample(
        corpus=corpus,
        format=found,
        rows=rows,
        has_ids=first.has_ids,
        dimension=first.dimension,
        files=max(1, len(entries)),
        corpus_rows=counted,
    )


def _mixed_sample(corpus: Corpus) -> Sample:
    """Return the first usable rows of each part, as many of each as the mixture has of them."""
    samples = [read_sample(part.corpus) for part in corpus.parts]
    counts = quotas(corpus.parts, [sample.corpus_rows for sample in samples])
    share = min(sample.rows.num_rows / count for sample, count in zip(samples, counts, strict=True))
    taken = [
        sample.rows.slice(0, max(1, round(min(share, 1.0) * count)))
        for sample, count in zip(samples, counts, strict=True)
    ]
    named = [
        rows.append_column(SOURCE, pa.array([part.name] * rows.num_rows))
        for rows, part in zip(taken, corpus.parts, strict=True)
    ]
    return Sample(
        corpus=corpus,
        format="auto",
        rows=pa.concat_tables(named),
        has_ids=any(sample.has_ids for sample in samples),
        dimension=samples[0].dimension,
        files=sum(sample.files for sample in samples),
        corpus_rows=sum(counts),
    )


def _usable_rows(parts: Iterable[tuple[Corpus, Plan]]) -> pa.Table:
    tables: list[pa.Table] = []
    for corpus, planned in parts:
        for unit in planned.units:
            table = read_unit(corpus, unit, dimension=planned.dimension)
            good = table.filter(pc.is_null(table.column(REJECT)))
            tables.append(good.drop_columns(["row", "content", REJECT]))
            rows = sum(one.num_rows for one in tables)
            if rows >= _MOST_ROWS or sum(one.nbytes for one in tables) >= _MOST_BYTES:
                return pa.concat_tables(tables).slice(0, _MOST_ROWS)
    return pa.concat_tables(tables)


def write_sample(sample: Sample, folder: str, units: int, rows: int) -> dict[str, Any]:
    """Write `units` x `rows` rows to a folder, in up to eight files; returns how to read them.

    Rows are repeated, under new ids, where the sample has too few. The settings are those of the
    configuration's section of the side.
    """
    files = max(count for count in (1, 2, 4, 8) if count <= sample.files and units % count == 0)
    write = _WRITERS.get(sample.format, _parquet)
    each = units * rows // files
    for number in range(files):
        places = np.arange(number * each, (number + 1) * each)
        table = sample.rows.take(pa.array(places % sample.rows.num_rows))
        turns = (places // sample.rows.num_rows).tolist()
        if sample.has_ids:
            table = _changed(table, ID, [f"~{turn}" if turn else "" for turn in turns])
        elif TEXT in table.column_names:
            # Units of the very same lines are one unit: the first line of each tells them apart.
            begins = (places % rows == 0).tolist()
            ends = [
                f" {turn}" if turn and begin else ""
                for turn, begin in zip(turns, begins, strict=True)
            ]
            table = _changed(table, TEXT, ends)
        write(sample, table, locations.join(folder, f"{number:05d}"), rows)
    corpus = sample.corpus
    settings: dict[str, Any] = {"path": folder, "ids_path": None}
    if corpus.modality == "text":
        settings["sources"] = {}
    if sample.rewritten:
        settings |= {"format": "parquet", "id_column": ID}
        settings |= {f"{corpus.modality}_column": TEXT if corpus.modality == "text" else IMAGE}
        given = EMBEDDING in sample.rows.column_names
        return settings | {"embedding_column": EMBEDDING if given else None}
    return settings | {
        "format": sample.format,
        "id_column": corpus.id_column,
        "embedding_column": corpus.embedding_column,
    }


def _changed(table: pa.Table, name: str, ends: list[str]) -> pa.Table:
    """Return the table with something put behind each of a column's strings."""
    column = table.column(name).combine_chunks()
    joined = pc.binary_join_element_wise(column, pa.array(ends, pa.string()), "")
    return table.set_column(table.schema.get_field_index(name), name, joined)


def _named(sample: Sample, table: pa.Table) -> pa.Table:
    """Return the columns as the corpus names them; ids that were derived are left out."""
    corpus = sample.corpus
    names = {
        ID: corpus.id_column,
        TEXT: corpus.text_column,
        IMAGE: corpus.image_column,
        EMBEDDING: corpus.embedding_column or EMBEDDING,
    }
    if sample.rewritten:
        names = {}
    kept = [name for name in table.column_names if name != ID or sample.has_ids]
    # A column read twice under two names, such as text passed through, keeps the reader's own.
    renamed = {names.get(name, name): table.column(name) for name in reversed(kept)}
    return pa.table(renamed)


def _parquet(sample: Sample, table: pa.Table, url: str, unit_rows: int) -> None:
    sink = io.BytesIO()
    pq.write_table(_named(sample, table), sink, row_group_size=unit_rows)
    locations.write_bytes(f"{url}.parquet", sink.getvalue())


def _lines(sample: Sample, table: pa.Table, url: str, unit_rows: int) -> None:
    del sample, unit_rows
    data = "".join(f"{caption}\n" for caption in table.column(TEXT).to_pylist())
    locations.write_bytes(f"{url}.txt", data.encode())


def _json_lines(sample: Sample, table: pa.Table, url: str, unit_rows: int) -> None:
    del unit_rows
    rows = _named(sample, table).to_pylist()
    data = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    locations.write_bytes(f"{url}.jsonl", data.encode())


def _arrays(sample: Sample, table: pa.Table, url: str, unit_rows: int) -> None:
    del unit_rows
    sink = io.BytesIO()
    np.save(sink, embeddings_of(table))
    locations.write_bytes(f"{url}.npy", sink.getvalue())
    if sample.has_ids:
        ids = "".join(f"{one}\n" for one in table.column(ID).to_pylist())
        locations.write_bytes(f"{url}.ids.txt", ids.encode())


_WRITERS: dict[str, Callable[[Sample, pa.Table, str, int], None]] = {
    "text": _lines,
    "parquet": _parquet,
    "jsonl": _json_lines,
    "npy": _arrays,
}
