"""Rows that make an encoder raise: found by bisection, so that they cost only themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encoders.class_encoder import WrongEmbeddingsError

Encoding = TypeVar("Encoding")
Mask = npt.NDArray[np.bool_]

_MOST_ROWS, _MOST_SHARE = 8, 0.05


def poison_limit(rows: int) -> int:
    """Return how many of a unit's rows may fail alone before it is not the rows that fail."""
    return max(_MOST_ROWS, int(_MOST_SHARE * rows))


def encode_without_poison(
    encode: Callable[[Sequence[Any]], Encoding],
    inputs: Sequence[Any],
    works: Callable[[], bool],
) -> tuple[Encoding, Mask]:
    """Return the encoding of the rows that can be encoded, and which cannot, (n,).

    Rows that raise are searched for by bisection; the others are then encoded together, as if the
    poisonous ones had never been there. `works` says whether a row known to be good is still
    encoded; it is asked where no row of these was.

    Raises:
        torch.OutOfMemoryError: if one row alone doesn't fit; a row is not to blame for that.
        WrongEmbeddingsError: at once; no row is to blame for that either.
        Exception: what `encode` raised, when more rows fail alone than `poison_limit`, or rows
            fail that were found to be good.
    """
    try:
        return encode(inputs), np.zeros(len(inputs), dtype=np.bool_)
    except (torch.OutOfMemoryError, WrongEmbeddingsError):
        raise
    except Exception as error:
        first = error
    poison = np.zeros(len(inputs), dtype=np.bool_)
    pending = [(0, len(inputs))]
    while pending:
        start, stop = pending.pop()
        if start > 0 or stop < len(inputs):  # all of them together have just failed
            try:
                encode(inputs[start:stop])
                continue
            except (torch.OutOfMemoryError, WrongEmbeddingsError):
                raise
            except Exception:
                pass
        if stop - start > 1:
            middle = (start + stop) // 2
            pending += [(middle, stop), (start, middle)]
            continue
        poison[start] = True
        if poison.sum() > poison_limit(len(inputs)):
            raise first
    if poison.all() and not works():
        raise first
    try:
        return encode([one for one, bad in zip(inputs, poison, strict=True) if not bad]), poison
    except Exception:
        raise first from None
