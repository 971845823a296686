"""The formats of inputs: their names, endings, and what their rows can be. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["auto", "text", "jsonl", "parquet", "images", "webdataset", "npy", "dataset"]


@dataclass(frozen=True, kw_only=True)
class FormatTraits:
    """What a format can hold.

    `texts` and `images` say whether its rows can be captions or image files; `embeddings`
    whether they are embeddings always, where a column is named, or never; `columns` whether rows
    have further columns, to be passed through.
    """

    endings: tuple[str, ...] = ()
    texts: bool = False
    images: bool = False
    embeddings: Literal["always", "named", "never"] = "never"
    columns: bool = False


FORMATS: dict[Format, FormatTraits] = {
    "text": FormatTraits(endings=(".txt",), texts=True),
    "jsonl": FormatTraits(
        endings=(".jsonl", ".ndjson"), texts=True, embeddings="named", columns=True
    ),
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
    "dataset": FormatTraits(embeddings="always", columns=True),
}
"""All formats by name; `dataset` is one of our own folders."""

ENDINGS: dict[str, Format] = {
    ending: name for name, traits in FORMATS.items() for ending in traits.endings
}


def file_format(url: str) -> Format | None:
    """Return the format that a file's ending names, None if it names none."""
    if url.startswith(("http://", "https://")):
        url = url.split("?", 1)[0]
    name = url.rsplit("/", 1)[-1].lower()
    return next((found for ending, found in ENDINGS.items() if name.endswith(ending)), None)
