"""Encoding and correcting: one callable, so that embeddings stay on the device in between."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.align.registry import load_aligner
from pipeline.schema import EMBEDDING, ID, IMAGE, REJECT, TEXT, RejectReason, embedding_type
from pipeline.stages.envelope import Envelope
from pipeline.storage.shards import embeddings_of

if TYPE_CHECKING:
    from pipeline.encoders import OpenClipEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """How to make the encoder in an actor; see `OpenClipEncoder`."""

    model: str
    pretrained: str | None = None
    precision: str = "fp32"
    token_budget: int = 16384
    image_batch: int = 64

    def build(self, *towers: Literal["text", "image"]) -> OpenClipEncoder:
        """Load the encoder; raises ValueError when there is no such model."""
        # Here, not above: open_clip takes seconds to import and correcting alone does not need it.
        from pipeline.encoders import OpenClipEncoder

        return OpenClipEncoder(**asdict(self), towers=towers or ("text", "image"))


class Embed:
    """Stage: fills the embedding column of a block by encoding, correcting, or both.

    Without an encoder the block carries embeddings already; without an aligner the encoder's
    output is the result. What is loaded here is loaded once an actor.
    """

    def __init__(
        self,
        *,
        modality: Literal["text", "image"],
        encoder: EncoderOptions | None = None,
        aligner: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Load the encoder and the aligner (an artifact's URL); raises ValueError when it can't."""
        assert encoder or aligner, "nothing to do"
        if threads is not None:
            torch.set_num_threads(threads)
        self._modality = modality
        self._encoder = encoder.build(modality) if encoder else None
        default = "cuda" if torch.cuda.is_available() else "cpu"
        device = self._encoder.device if self._encoder else torch.device(default)
        self._aligner = load_aligner(aligner).to(device) if aligner else None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the block with embeddings (n, d), float32, zero in rejected rows."""
        table, envelope = Envelope.open(block)
        good = pc.is_null(table.column(REJECT)).to_numpy()
        embeddings: Tensor
        if self._encoder is None:
            embeddings = torch.from_numpy(embeddings_of(table)[good])
        else:
            with envelope.timed("encode"):
                embeddings, undecodable = self._encode(table, good, envelope)
            if undecodable.any():
                table, good = _reject(table, good, undecodable)
                embeddings = embeddings[torch.from_numpy(~undecodable).to(embeddings.device)]
        if self._aligner is not None and good.any():
            with envelope.timed("correct"):
                ids = table.column(ID).filter(pa.array(good)).to_pylist()
                embeddings = self._aligner.transform(embeddings, ids)
        return envelope.seal(_with_embeddings(table, good, embeddings.cpu().numpy()))

    def _encode(
        self, table: pa.Table, good: npt.NDArray[np.bool_], envelope: Envelope
    ) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Return embeddings of the good rows (n, d) and which of them are undecodable (n,)."""
        assert self._encoder is not None
        column = TEXT if self._modality == "text" else IMAGE
        inputs: list[Any] = table.column(column).filter(pa.array(good)).to_pylist()
        if self._modality == "text":
            encoding = self._encoder.encode_texts(inputs)
            envelope.truncated = int(encoding.truncated.sum())
            return encoding.embeddings, np.zeros(len(inputs), dtype=np.bool_)
        images = self._encoder.encode_images(inputs)
        return images.embeddings, images.undecodable


def _reject(
    table: pa.Table, good: npt.NDArray[np.bool_], undecodable: npt.NDArray[np.bool_]
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Mark undecodable rows (among the good ones) as rejected and keep their bytes."""
    broken = np.zeros_like(good)
    broken[np.flatnonzero(good)[undecodable]] = True
    mask = pa.array(broken)
    reasons = pc.if_else(mask, RejectReason.UNDECODABLE_IMAGE.value, table.column(REJECT))
    contents = pc.if_else(mask, table.column(IMAGE), table.column("content"))
    for name, column in ((REJECT, reasons), ("content", contents)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table, good & ~broken


def _with_embeddings(
    table: pa.Table, good: npt.NDArray[np.bool_], embeddings: npt.NDArray[np.float32]
) -> pa.Table:
    """Return the table with embeddings in the good rows; images are dropped, they are done with."""
    full = np.zeros((table.num_rows, embeddings.shape[1]), dtype=np.float32)
    full[good] = embeddings
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(full.reshape(-1)), type=embedding_type(full.shape[1], "float32")
    )
    kept = table.drop_columns([name for name in (IMAGE, EMBEDDING) if name in table.column_names])
    return kept.append_column(EMBEDDING, column)
