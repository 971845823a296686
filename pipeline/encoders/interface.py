"""What the pipeline asks of an encoder, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CLASS = "python:"
"""Begins the names of classes outside the package: `python:package.module:Class`."""


class Encoder(Protocol):
    """Captions and images to embeddings in one space; all that the pipeline asks of an encoder.

    A class that has these methods is used by its import path, `encoder.model:
    python:package.module:Class`, and made in each worker with `encoder.options` as keyword
    arguments. It needs nothing of this package.
    """

    def describe(self) -> dict[str, Any]:
        """Return what manifests say of the encoder, as JSON-able values.

        At least `model` (its name), `fingerprint` (a text that is the same in every process, and
        another as soon as the embeddings are others: a digest of the weights and the settings),
        `dimension` (d) and `context_length` (tokens, or None where nothing is cut).
        """
        ...

    def encode_texts(
        self, texts: Sequence[str]
    ) -> tuple[torch.Tensor | NDArray[np.floating[Any]], NDArray[np.bool_]]:
        """Return embeddings `(n, d)` of captions and which were cut for being too long, `(n,)`."""
        ...

    def encode_images(
        self, images: Sequence[bytes]
    ) -> tuple[torch.Tensor | NDArray[np.floating[Any]], NDArray[np.bool_]]:
        """Return embeddings `(n, d)` of encoded images and which cannot be decoded, `(n,)`.

        The rows of those that cannot are not looked at.
        """
        ...
