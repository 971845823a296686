"""Column names, Arrow schemas and reject reasons shared by every room."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1

ID = "id"
TEXT = "text"
IMAGE = "image"
EMBEDDING = "embedding"
SOURCE = "source"
"""Of a corpus mixed from several sources: the name of each row's."""
REJECT = "reject"
"""Inside the pipeline a block keeps its unusable rows; this says why, null for good rows."""
ENVELOPE = "unit"
"""Inside the pipeline every row carries its unit's envelope (JSON, dictionary-encoded)."""


class RejectReason(StrEnum):
    """Why a row cannot be used; the value stands in quarantine shards, receipts and manifests."""

    NOT_UTF8 = "not_utf8"
    MALFORMED = "malformed"
    EMPTY = "empty"
    MISSING_ID = "missing_id"
    DUPLICATE_ID = "duplicate_id"
    DUPLICATE_TEXT = "duplicate_text"
    WRONG_DIMENSION = "wrong_dimension"
    NOT_FINITE = "not_finite"
    ZERO_EMBEDDING = "zero_embedding"
    UNDECODABLE_IMAGE = "undecodable_image"
    TOO_LONG = "too_long"
    CONTROL_CHARACTERS = "control_characters"
    UNSAFE_ID = "unsafe_id"
    UNENCODABLE = "unencodable"


def embedding_type(dimension: int, dtype: str) -> pa.DataType:
    """Return the Arrow type of an embedding column: `fixed_size_list<float16|float32>[d]`.

    Raises:
        ValueError: if `dtype` is neither "float16" nor "float32".
    """
    values = {"float16": pa.float16(), "float32": pa.float32()}
    if dtype not in values:
        raise ValueError(f"embedding dtype must be float16 or float32, not {dtype!r}")
    return pa.list_(pa.field("item", values[dtype], nullable=False), dimension)


def dataset_schema(
    dimension: int, dtype: str, passed_through: Sequence[pa.Field] = ()
) -> pa.Schema:
    """Return the schema of a dataset shard: id, text, embedding, then passed-through columns."""
    return pa.schema(
        [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(TEXT, pa.string()),
            pa.field(EMBEDDING, embedding_type(dimension, dtype), nullable=False),
            *passed_through,
        ]
    )


QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field(ID, pa.string()),
        pa.field("content", pa.binary()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""A quarantined row: position in the unit, id if it had one, raw content, reason."""
