"""The formats of inputs: their names, endings, and what their rows can be. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal[
    "auto",
    "text",
    "jsonl",
    "csv",
    "parquet",
    "images",
    "webdataset",
    "npy",
    "npz",
    "safetensors",
    "pickle",
    "clip-retrieval",
    "dataset",
    "datasets",
]


@dataclass(frozen=True, kw_only=True)
class FormatTraits:
    """What a format can hold.

    `texts` and `images` say whether its rows can be captions or image files; `embeddings`
    whether they are embeddings always, where a column is named, or never; `columns` whether rows
    have further columns, to be passed through; `lines` whether a file may be compressed, `.gz` or
    `.zst` behind its ending.
    """

    endings: tuple[str, ...] = ()
    texts: bool = False
    images: bool = False
    embeddings: Literal["always", "named", "never"] = "never"
    columns: bool = False
    lines: bool = False


FORMATS: dict[Format, FormatTraits] = {
    "text": FormatTraits(endings=(".txt",), texts=True, lines=True),
    "jsonl": FormatTraits(
        endings=(".jsonl", ".ndjson"), texts=True, embeddings="named", columns=True, lines=True
    ),
    "csv": FormatTraits(endings=(".csv", ".tsv"), texts=True, columns=True, lines=True),
    "parquet": FormatTraits(
        endings=(".parquet", ".pq"), texts=True, images=True, embeddings="named", columns=True
    ),
    "images": FormatTraits(
        endings=(
            ".jpg",
            ".jpeg",
            ".png",
            ".webp",
            ".bmp",
            ".gif",
            ".tif",
            ".tiff",
            ".ppm",
            ".jp2",
        ),
        images=True,
    ),
    "webdataset": FormatTraits(endings=(".tar",), texts=True, images=True, columns=True),
    "npy": FormatTraits(endings=(".npy",), embeddings="always"),
    "npz": FormatTraits(endings=(".npz",), embeddings="always"),
    "safetensors": FormatTraits(endings=(".safetensors",), embeddings="always"),
    "pickle": FormatTraits(endings=(".pkl", ".pickle"), embeddings="always"),
    "clip-retrieval": FormatTraits(embeddings="always", columns=True),
    "dataset": FormatTraits(embeddings="always", columns=True),
    "datasets": FormatTraits(texts=True, images=True, embeddings="named", columns=True),
}
"""All formats by name.

`dataset` is a folder of our own, `clip-retrieval` one that it wrote; `datasets` is Hugging Face's
library, whose data sets are copied to Parquet first.
"""

ARRAYS: tuple[Format, ...] = ("npy", "npz", "safetensors")
"""Formats of bare arrays, whose rows an ids file beside them can name."""

ENDINGS: dict[str, Format] = {
    ending: name for name, traits in FORMATS.items() for ending in traits.endings
}

ARRAY_ENDINGS = tuple(ending for name in ARRAYS for ending in FORMATS[name].endings)


_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def file_format(url: str) -> Format | None:
    """Return the format that a file's ending names, None if it names none."""
    name = _name(url)
    for ending, found in ENDINGS.items():
        if name.endswith(ending):
            return found
        packed = tuple(f"{ending}{packing}" for packing in _COMPRESSIONS)
        if FORMATS[found].lines and name.endswith(packed):
            return found
    return None


def compression(url: str) -> str | None:
    """Return how a file is compressed by its ending, "gzip" or "zstd"; None if it is not."""
    name = _name(url)
    return next((kind for ending, kind in _COMPRESSIONS.items() if name.endswith(ending)), None)


def _name(url: str) -> str:
    if url.startswith(("http://", "https://")):
        url = url.split("?", 1)[0]
    return url.rsplit("/", 1)[-1].lower()
