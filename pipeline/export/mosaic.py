"""MosaicML Streaming: MDS shards, written here since its package asks for every cloud's client."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.export.layout import CONVERSATIONS, Layout, PartFiles, Pieces
from pipeline.export.source import Shard
from pipeline.schema import EMBEDDING, ID, TEXT

_HASH = "sha1"
_MOST_BYTES = 2**32 - 1
"""Offsets in a shard are uint32."""


class Mosaic(Layout):
    """One MDS shard a shard: id, text, embedding, conversations and further columns as JSON."""

    name: ClassVar[str] = "mds"
    has_conversations: ClassVar[bool] = True
    title: ClassVar[str] = "MosaicML Streaming"
    reading: ClassVar[str] = (
        "```python\n"
        "from streaming import StreamingDataset\n\n"
        'rows = StreamingDataset(local="FOLDER", shuffle=True, batch_size=256)\n'
        "```\n\n"
        "From a bucket give `remote=` the URL and `local=` a folder for its cache. A row without a "
        'caption has the text "".\n'
    )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return the shard; its notes are its entry in index.json."""
        passed = [name for name in shard.passed_through if name != CONVERSATIONS]
        columns = {name: shard.values(name) for name in passed}
        ids, texts, embeddings = shard.ids(), shard.texts(), shard.embeddings()
        conversations = self.conversations(shard, ids, texts)
        values = embeddings.astype(embeddings.dtype.newbyteorder("<"), copy=False)
        encodings = {
            ID: "str",
            TEXT: "str",
            EMBEDDING: f"ndarray:{embeddings.dtype.name}:{embeddings.shape[1]}",
            **dict.fromkeys([CONVERSATIONS, *columns], "json"),
        }
        names = sorted(encodings)
        rows = []
        for row, (identifier, turns) in enumerate(zip(ids, conversations, strict=True)):
            own = {
                ID: identifier.encode(),
                TEXT: (texts[row] or "").encode(),
                EMBEDDING: values[row].tobytes(),
                CONVERSATIONS: _json(turns),
            }
            for name, column in columns.items():
                own[name] = _json(column[row])
            sizes = [len(own[name]) for name in names if name != EMBEDDING]
            rows.append(b"".join((_uint32(sizes), *(own[name] for name in names))))
        config = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [_HASH],
            "size_limit": None,
            "column_names": names,
            "column_encodings": [encodings[name] for name in names],
            "column_sizes": [
                values.shape[1] * values.itemsize if name == EMBEDDING else None for name in names
            ],
        }
        data = _shard_bytes(rows, config, shard.where)
        basename = f"shard.{number:05d}.mds"
        raw = {
            "basename": basename,
            "bytes": len(data),
            "hashes": {_HASH: hashlib.sha1(data, usedforsecurity=False).hexdigest()},
        }
        entry = {**config, "samples": len(rows), "raw_data": raw, "zip_data": None}
        return PartFiles(files={basename: data}, notes=entry)

    def index(
        self, notes: Sequence[dict[str, Any]], entries: Pieces
    ) -> Iterator[tuple[str, Pieces]]:
        """Yield index.json, which names the shards."""

        def pieces() -> Iterator[bytes]:
            between = b'{"shards": [\n'
            for note in notes:
                yield between + json.dumps(note, sort_keys=True).encode()
                between = b",\n"
            yield b'\n], "version": 2}\n'

        yield "index.json", pieces


def _shard_bytes(rows: Sequence[bytes], config: dict[str, Any], where: str) -> bytes:
    """Return number of rows, where each begins and the last ends, the columns, and the rows."""
    said = json.dumps(config, sort_keys=True).encode()
    start = 4 + 4 * (len(rows) + 1) + len(said)
    ends = start + np.cumsum([0, *map(len, rows)], dtype=np.int64)
    if ends[-1] > _MOST_BYTES:
        raise ValueError(
            f"{where} makes an MDS shard of {ends[-1]:,} bytes, and 4 GiB is the most; synthesize "
            "with fewer units.rows_per_shard, or export as webdataset"
        )
    return b"".join((_uint32([len(rows)]), ends.astype("<u4").tobytes(), said, *rows))


_ENCODE = json.JSONEncoder(allow_nan=False).encode


def _json(value: object) -> bytes:
    return _ENCODE(value).encode()


def _uint32(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)
