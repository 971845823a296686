"""Formats of Parquet and arrays: Hugging Face `datasets`, and clip-retrieval's folders."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.arrays import npy_bytes
from pipeline.export.layout import Layout, PartFiles
from pipeline.export.source import Shard
from pipeline.schema import EMBEDDING, ID, TEXT

_IMAGE_PATH = "image_path"
_CAPTION = "caption"


class HuggingFace(Layout):
    """The shards, byte for byte, under the names that `datasets` and the Hub look for."""

    name: ClassVar[str] = "hf"
    title: ClassVar[str] = "Hugging Face datasets"
    reading: ClassVar[str] = (
        "```python\n"
        "from datasets import load_dataset\n\n"
        'rows = load_dataset("FOLDER", split="train", streaming=True).with_format("numpy")\n'
        "```\n"
    )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return the shard itself."""
        return PartFiles(files={f"data/train-{number:05d}-of-{parts:05d}.parquet": shard.data})


class ClipRetrieval(Layout):
    """Arrays (n, d) beside Parquet with the rows' metadata in the same order."""

    name: ClassVar[str] = "npy"
    title: ClassVar[str] = "embedding folders of clip-retrieval"
    reading: ClassVar[str] = (
        "Row i of `img_emb/img_emb_NNNNN.npy` belongs to row i of "
        "`metadata/metadata_NNNNN.parquet`, whose `image_path` is the id.\n\n"
        "```bash\n"
        "clip-retrieval index --embeddings_folder FOLDER --index_folder INDEX\n"
        "```\n"
    )

    def check(self, schema: pa.Schema) -> None:
        """Raise ValueError if a column has a name that the layout needs."""
        if _CAPTION in schema.names:
            raise ValueError(
                f"the dataset passes a column {_CAPTION} through, which --format npy calls its "
                "texts by; export as hf or webdataset"
            )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return array and metadata."""
        rows = shard.table([name for name in shard.schema.names if name != EMBEDDING])
        names = [{TEXT: _CAPTION}.get(name, name) for name in rows.column_names]
        rows = rows.rename_columns(names)
        if _IMAGE_PATH not in names:
            rows = rows.add_column(0, _IMAGE_PATH, rows.column(ID))
        sink = pa.BufferOutputStream()
        pq.write_table(rows.replace_schema_metadata(None), sink, compression="zstd")
        return PartFiles(
            files={
                f"img_emb/img_emb_{number:05d}.npy": npy_bytes(shard.embeddings()),
                f"metadata/metadata_{number:05d}.parquet": sink.getvalue().to_pybytes(),
            }
        )
