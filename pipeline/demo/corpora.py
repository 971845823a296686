"""The demo's corpora on disk: captions, pictures, and held-out pairs, of disjoint scenes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import schema
from pipeline.demo.world import CAPTION_INDEX, IMAGE_INDEX, PAIR_INDEX, STREAM_SCENES, Scene

WORLD_VERSION = 1
"""Raise it whenever scenes, captions or file formats change, so that old corpora are redrawn."""
RECORD_NAME = "world.json"
_ROW_GROUP = 1000

Progress = Callable[[int, int], None]
"""Called with the rows written so far and the rows of all files."""

_IMAGE_SCHEMA = pa.schema(
    [pa.field(schema.ID, pa.string(), nullable=False), pa.field(schema.IMAGE, pa.binary())]
)


@dataclass(frozen=True)
class DemoCorpora:
    """Where the corpora stand: captions, images, and pairs in two files of matching order."""

    captions: Path
    images: Path
    pairs_images: Path
    pairs_captions: Path


def write_demo_corpora(
    folder: Path,
    *,
    captions: int = 20_000,
    images: int = 8_000,
    pairs: int = 2_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoCorpora:
    """Write the demo's corpora, or reuse files written here before with the same parameters.

    No scene stands in two files, save that the pair files show and tell the same scenes in the
    same order; none of them was seen in training.

    Args:
        folder: made if missing.
        captions: rows of `captions.jsonl` (`id`, `text`).
        images: rows of `images.parquet` (`id`, `image` as PNG bytes).
        pairs: rows of `pairs_images.parquet` and of `pairs_captions.jsonl`, ids equal row by row.
        seed: the world; other seeds share no scene with it.
        progress: called every 1,000 rows.

    Raises:
        ValueError: if a count is below 1 or passes the scenes of its stream, or `seed` is negative.
    """
    for name, count in (("captions", captions), ("images", images), ("pairs", pairs)):
        if not 1 <= count <= STREAM_SCENES:
            raise ValueError(f"{name} must be between 1 and {STREAM_SCENES}, not {count}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    corpora = DemoCorpora(
        captions=folder / "captions.jsonl",
        images=folder / "images.parquet",
        pairs_images=folder / "pairs_images.parquet",
        pairs_captions=folder / "pairs_captions.jsonl",
    )
    record = {
        "version": WORLD_VERSION,
        "captions": captions,
        "images": images,
        "pairs": pairs,
        "seed": seed,
    }
    if _is_written(folder, record, corpora):
        return corpora
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD_NAME).unlink(missing_ok=True)
    tally = _Count(captions + images + 2 * pairs, progress)
    _write_captions(corpora.captions, "caption", seed, CAPTION_INDEX, captions, tally)
    _write_images(corpora.images, "image", seed, IMAGE_INDEX, images, tally)
    _write_images(corpora.pairs_images, "pair", seed, PAIR_INDEX, pairs, tally)
    _write_captions(corpora.pairs_captions, "pair", seed, PAIR_INDEX, pairs, tally)
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return corpora


class _Count:
    """Rows written so far, reported to whoever listens."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def add(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(self._done, self._total)


def _is_written(folder: Path, record: dict[str, int], corpora: DemoCorpora) -> bool:
    try:
        written = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    paths = (corpora.captions, corpora.images, corpora.pairs_images, corpora.pairs_captions)
    return bool(written == record) and all(path.is_file() for path in paths)


def _blocks(rows: int) -> Iterator[range]:
    for start in range(0, rows, _ROW_GROUP):
        yield range(start, min(start + _ROW_GROUP, rows))


def _identifier(stem: str, row: int) -> str:
    """Return an id whose string order is its numeric order, such as "caption-0000017"."""
    return f"{stem}-{row:07d}"


def _write_captions(path: Path, stem: str, seed: int, first: int, rows: int, tally: _Count) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for block in _blocks(rows):
            for row in block:
                caption = Scene(seed, first + row).caption()
                line = {schema.ID: _identifier(stem, row), schema.TEXT: caption}
                lines.write(json.dumps(line) + "\n")
            tally.add(len(block))


def _write_images(path: Path, stem: str, seed: int, first: int, rows: int, tally: _Count) -> None:
    # PNG bytes are compressed already.
    with pq.ParquetWriter(path, _IMAGE_SCHEMA, compression="none") as writer:
        for block in _blocks(rows):
            ids = [_identifier(stem, row) for row in block]
            pictures = [_png(Scene(seed, first + row)) for row in block]
            table = pa.table({schema.ID: ids, schema.IMAGE: pictures}, schema=_IMAGE_SCHEMA)
            writer.write_table(table)
            tally.add(len(block))


def _png(scene: Scene) -> bytes:
    """Return a scene's picture as PNG bytes, lightly compressed for speed."""
    buffer = io.BytesIO()
    Image.fromarray(scene.image()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
