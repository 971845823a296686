"""Formats with one JSON list of all samples: ReVision's and LLaVA's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.export.arrays import npy_bytes, pickled_rows
from pipeline.export.layout import CONVERSATIONS, Layout, PartFiles, Pieces, compact, json_list
from pipeline.export.source import Shard
from pipeline.schema import ID

SAMPLES = "samples.json"
SHIM = "substitute_dataset.py"


class Revision(Layout):
    """Pickled lists of ids and float32 arrays, and a list with captions and conversations."""

    name: ClassVar[str] = "revision"
    has_conversations: ClassVar[bool] = True
    title: ClassVar[str] = "ReVision and Bunny"
    reading: ClassVar[str] = (
        '`embeddings/NNNNN.pkl` are pickled lists of `{"id": str, "embed": float32 array}`, '
        f"`{SAMPLES}` is the list of `id`, `caption` and `conversations`.\n\n"
        "**Unpickling runs what a pickle says: open only pickles that you trust**, such as those "
        "that you exported yourself or whose `checksums.sha256` you have from whoever did. "
        "anisoalign writes these files for trainers that ask for them and never unpickles one.\n"
    )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return the pickle."""
        ids, texts = shard.ids(), shard.texts()
        for identifier, text in zip(ids, texts, strict=True):
            if text is None:
                raise ValueError(_no_caption(shard, identifier, self.name))
        turns = self.conversations(shard, ids, texts)
        records = (
            compact({ID: identifier, "caption": text, CONVERSATIONS: turn})
            for identifier, text, turn in zip(ids, texts, turns, strict=True)
        )
        return PartFiles(
            files={f"embeddings/{number:05d}.pkl": pickled_rows(ids, shard.embeddings())},
            entries=b",\n".join(records),
        )

    def index(
        self, notes: Sequence[dict[str, Any]], entries: Pieces
    ) -> Iterator[tuple[str, Pieces]]:
        """Yield the list."""
        yield SAMPLES, json_list(entries)


class Llava(Layout):
    """Arrays that can be memory-mapped, a list that names their rows, and a dataset to read it."""

    name: ClassVar[str] = "llava"
    has_conversations: ClassVar[bool] = True
    title: ClassVar[str] = "LLaVA"
    reading: ClassVar[str] = (
        f"`{SAMPLES}` is LLaVA's list of `id`, `image` and `conversations`; an image like "
        "`embeddings/00012.npy#17` is row 17 of that array. "
        f"`{SHIM}` needs numpy and torch alone and stands in for the loading of images:\n\n"
        "```python\n"
        "from substitute_dataset import SubstituteDataset\n\n"
        'rows = SubstituteDataset("FOLDER")\n'
        'rows[0]["embedding"]  # a float32 tensor (d,)\n'
        "```\n"
    )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return the array."""
        ids, texts = shard.ids(), shard.texts()
        turns = self.conversations(shard, ids, texts)
        path = f"embeddings/{number:05d}.npy"
        records = []
        for row, (identifier, turn) in enumerate(zip(ids, turns, strict=True)):
            if turn is None:
                raise ValueError(_no_caption(shard, identifier, self.name))
            records.append(compact({ID: identifier, "image": f"{path}#{row}", CONVERSATIONS: turn}))
        return PartFiles(files={path: npy_bytes(shard.embeddings())}, entries=b",\n".join(records))

    def index(
        self, notes: Sequence[dict[str, Any]], entries: Pieces
    ) -> Iterator[tuple[str, Pieces]]:
        """Yield the list and the dataset that reads it."""
        yield SAMPLES, json_list(entries)
        yield SHIM, lambda: [(Path(__file__).parent / SHIM).read_bytes()]


def _no_caption(shard: Shard, identifier: str, name: str) -> str:
    return (
        f"{shard.where}: id {identifier!r} has no text, and --format {name} needs a caption for "
        "every row; export as hf, npy, webdataset or mds"
    )
