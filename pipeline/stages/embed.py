"""Encoding and correcting: one callable, so that embeddings stay in one process in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.align.base import Aligner
from pipeline.align.registry import load_aligner
from pipeline.encoders.class_encoder import WrongEmbeddingsError
from pipeline.encoders.devices import find_device
from pipeline.schema import EMBEDDING, ID, IMAGE, REJECT, TEXT, RejectReason, embedding_type
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.stages.envelope import Attempts, DeviceLostError, Envelope, Uncounted, UnitStage
from pipeline.stages.long_texts import encode_in_parts
from pipeline.stages.poison import Mask, encode_without_poison, poison_limit
from pipeline.stages.tensors import tensor_of
from pipeline.storage.columns import Rejects, unit_rows
from pipeline.storage.locations import redact_url
from pipeline.storage.shards import embeddings_of, is_in_order

Embeddings = npt.NDArray[np.float32]


class Embed(UnitStage):
    """Stage: fills the embedding column of a block by encoding, correcting, or both.

    Without an encoder the block carries embeddings already; without an aligner the encoder's
    output is the result. Where both are there, what is corrected is what a dataset of
    `embeddings_dtype` would have stored in between, so that the substitutes are the same bytes
    either way. What is loaded here is loaded once an actor. Captions beyond the encoder's context
    are cut there, encoded in parts (`long_texts.py`), or rejected, as `over_long` says.
    """

    stage = "embed"

    def __init__(
        self,
        *,
        modality: Literal["text", "image"],
        encoder: EncoderOptions | None = None,
        aligner: str | None = None,
        encoder_fingerprint: str | None = None,
        aligner_fingerprint: str | None = None,
        embeddings_dtype: str = "float16",
        device: str = "auto",
        over_long: Literal["truncate", "split", "reject"] = "truncate",
        threads: int | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        """Load the encoder and the aligner (an artifact's URL), the aligner on the device.

        Raises:
            ValueError: when they cannot be loaded, or are not those of the fingerprints given: a
                process that starts late in a run must not go on with others.
        """
        assert encoder or aligner, "nothing to do"
        if threads is not None:
            torch.set_num_threads(threads)
        self.attempts = attempts or Uncounted()
        self._modality = modality
        self._embeddings_dtype = embeddings_dtype
        self._over_long = over_long
        self._encoder = encoder.build(modality) if encoder else None
        self._device = find_device(device)
        self._aligner = load_aligner(aligner).to(self._device) if aligner else None
        if self._encoder is not None and encoder_fingerprint is not None:
            assert encoder is not None
            found = self._encoder.describe()["fingerprint"]
            _check_unchanged(f"encoder {encoder.model}", found, encoder_fingerprint)
        if self._aligner is not None and aligner_fingerprint is not None:
            assert aligner is not None
            what = f"aligner at {redact_url(aligner)}"
            _check_unchanged(what, self._aligner.fingerprint, aligner_fingerprint)
        self._known_good: list[Any] = []

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        """Return the block with embeddings (n, d), float32, zero in rejected rows.

        Raises:
            DeviceLostError: when the device or the model fails on what it could do before.
        """
        try:
            return envelope.seal(self._embedded(table, envelope))
        except (torch.OutOfMemoryError, WrongEmbeddingsError):
            raise
        except Exception as error:
            if not self._works():
                raise DeviceLostError(
                    f"the {self._device.type} device or the model on it works no longer: {error}"
                ) from error
            raise

    def _embedded(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        good = pc.is_null(table.column(REJECT)).to_numpy()
        embeddings: Embeddings
        if self._encoder is None:
            embeddings = embeddings_of(table)
            if not good.all():
                embeddings = embeddings[good]
        else:
            with envelope.timed("encode"):
                table, good, embeddings = self._encoded(table, good, envelope)
        if self._aligner is not None and good.any():
            with envelope.timed("correct"):
                if self._encoder is not None:
                    embeddings = as_stored(embeddings, self._embeddings_dtype)
                ids = table.column(ID).filter(pa.array(good))
                embeddings = _corrected(self._aligner, embeddings, ids)
        return _with_embeddings(table, good, embeddings)

    def _encoded(
        self, table: pa.Table, good: Mask, envelope: Envelope
    ) -> tuple[pa.Table, Mask, Embeddings]:
        """Return the table with more rejects, its good rows (n,) and their embeddings (m, d)."""
        column = TEXT if self._modality == "text" else IMAGE
        inputs: list[Any] = table.column(column).filter(pa.array(good)).to_pylist()
        (embeddings, noted), poison = encode_without_poison(self._encode, inputs, self._works)
        if poison.any():
            table, good = _reject(table, good, poison, RejectReason.UNENCODABLE, column)
        broken = np.zeros(len(embeddings), dtype=np.bool_)
        if self._modality == "text":
            if self._over_long == "reject":
                broken = noted
                table, good = _reject(table, good, broken, RejectReason.TOO_LONG, column)
                embeddings = embeddings[~broken]
            else:
                envelope.truncated = int(noted.sum())
        else:
            broken = noted
            table, good = _reject(table, good, broken, RejectReason.UNDECODABLE_IMAGE, column)
            embeddings = embeddings[~broken]
        usable = np.isfinite(embeddings).all(axis=1) & embeddings.any(axis=1)
        unusable = np.logical_not(usable)
        if unusable.sum() + poison.sum() > poison_limit(len(inputs)):
            raise ValueError(
                f"the encoder gives no embedding for {unusable.sum() + poison.sum()} of "
                f"{len(inputs)} rows; check encoder.precision and the weights"
            )
        if unusable.any():
            table, good = _reject(table, good, unusable, RejectReason.UNENCODABLE, column)
            embeddings = embeddings[~unusable]
        kept = [one for one, bad in zip(inputs, poison, strict=True) if not bad]
        self._known_good = [one for one, bad in zip(kept, broken, strict=True) if not bad][
            :1
        ] or self._known_good
        return table, good, embeddings

    def _encode(self, inputs: Sequence[Any]) -> tuple[Embeddings, Mask]:
        """Return embeddings (n, d) and which texts are over-long, or which images undecodable."""
        if self._modality == "text" and self._over_long == "split":
            return encode_in_parts(self._encode_once, inputs)
        return self._encode_once(inputs)

    def _encode_once(self, inputs: Sequence[Any]) -> tuple[Embeddings, Mask]:
        """Return what the encoder gives for inputs as they are."""
        assert self._encoder is not None
        encode = (
            self._encoder.encode_texts if self._modality == "text" else self._encoder.encode_images
        )
        embeddings, noted = encode(inputs)
        return torch.as_tensor(embeddings).cpu().numpy(), noted

    def _works(self) -> bool:
        """Return whether the device, and the encoder on a row it has encoded before, still work."""
        try:
            torch.ones(1, device=self._device).sum().item()
            if self._known_good:
                self._encode(self._known_good)
        except torch.OutOfMemoryError:
            return True
        except Exception:
            return False
        return True


def _check_unchanged(what: str, found: str | None, expected: str) -> None:
    if found != expected:
        raise ValueError(f"the {what} was changed during the run; start it again")


def as_stored(embeddings: Embeddings, dtype: str) -> Embeddings:
    """Return embeddings (n, d) as they would be read back from a shard of `dtype`."""
    rows, dimension = embeddings.shape
    return unit_rows(embeddings.astype(dtype), rows, dimension, Rejects(rows))


def _corrected(aligner: Aligner, embeddings: Embeddings, ids: pa.ChunkedArray) -> Embeddings:
    """Return the substitutes (n, d) of embeddings (n, d).

    Rows go through the aligner in order of id, as they stand in a shard: a matrix product's last
    bits depend on where a row stands.
    """
    places = pc.sort_indices(ids)
    if is_in_order(places):
        return _transformed(aligner, tensor_of(embeddings), ids.to_pylist()).numpy()
    order = places.to_numpy()
    mapped = _transformed(aligner, torch.from_numpy(embeddings[order]), ids.take(order).to_pylist())
    result = np.empty((len(order), mapped.shape[1]), dtype=np.float32)
    result[order] = mapped.numpy()
    return result


def _transformed(aligner: Aligner, embeddings: Tensor, ids: list[str]) -> Tensor:
    """Return the substitutes on the CPU; rows are halved while the device has too little memory."""
    try:
        return aligner.transform(embeddings, ids).cpu()
    except torch.OutOfMemoryError:
        if len(ids) == 1:
            raise
    # Out here, past the except clause: there the traceback still holds what filled the memory.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(ids) // 2
    halves = ((embeddings[:middle], ids[:middle]), (embeddings[middle:], ids[middle:]))
    return torch.cat([_transformed(aligner, *half) for half in halves])


def _reject(
    table: pa.Table, good: Mask, bad: Mask, reason: RejectReason, source: str
) -> tuple[pa.Table, Mask]:
    """Reject rows (a mask over the good ones) and keep what they were made of as their content."""
    broken = np.zeros_like(good)
    broken[np.flatnonzero(good)[bad]] = True
    mask = pa.array(broken)
    reasons = pc.if_else(mask, reason.value, table.column(REJECT))
    contents = pc.if_else(mask, table.column(source).cast(pa.binary()), table.column("content"))
    for name, column in ((REJECT, reasons), ("content", contents)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table, good & ~broken


def _with_embeddings(table: pa.Table, good: Mask, embeddings: Embeddings) -> pa.Table:
    """Return the table with embeddings in the good rows; images are dropped, they are done with."""
    full = embeddings
    if not good.all():
        full = np.zeros((table.num_rows, embeddings.shape[1]), dtype=np.float32)
        full[good] = embeddings
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(full.reshape(-1)), type=embedding_type(full.shape[1], "float32")
    )
    kept = table.drop_columns([name for name in (IMAGE, EMBEDDING) if name in table.column_names])
    return kept.append_column(EMBEDDING, column)
