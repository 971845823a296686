"""Lengths of embeddings as they were given: counted, since each is normalised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pipeline.storage.receipts import Receipt

TOLERANCE = 1e-2
"""A norm this near 1 is taken for 1: float16 rounds that of a unit row by less."""
GREATEST, LEAST = 1e4, 1e-4
"""Where all norms are above or all below, what is read are no embeddings."""


@dataclass(kw_only=True)
class Norms:
    """How many rows were not of unit length, and the least and greatest norm of all."""

    off: int = 0
    least: float = math.inf
    greatest: float = 0.0

    def add(self, norms: npt.NDArray[np.float64]) -> None:
        """Count the norms (n,) of more rows."""
        if len(norms):
            self.off += int(np.count_nonzero(np.abs(norms - 1) > TOLERANCE))
            self.least = min(self.least, float(norms.min()))
            self.greatest = max(self.greatest, float(norms.max()))

    def merge(self, other: Norms) -> Norms:
        """Return the norms of both."""
        return Norms(
            off=self.off + other.off,
            least=min(self.least, other.least),
            greatest=max(self.greatest, other.greatest),
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return what `of_mapping` reads, nothing where all are of unit length."""
        return dict(vars(self)) if self.off else {}

    @classmethod
    def of_mapping(cls, values: Mapping[str, Any]) -> Norms:
        """Return what `to_mapping` wrote; nothing stands for rows of unit length."""
        return cls(**values) if values else cls(least=1.0, greatest=1.0)

    @classmethod
    def of_receipts(cls, receipts: Iterable[Receipt]) -> Norms:
        """Return the norms of what datasets were made of."""
        merged = cls()
        for receipt in receipts:
            if receipt.rows:
                merged = merged.merge(cls.of_mapping(receipt.norms))
        return merged

    def require_plausible(self, shown: str) -> None:
        """Raise ValueError if no encoder's output is like this, whichever way it is scaled."""
        if self.off and (self.least > GREATEST or self.greatest < LEAST):
            raise ValueError(
                f"the embeddings of {shown} have {self}, as no encoder's have; see that "
                "embedding_column names the right one"
            )

    def __str__(self) -> str:
        """Return the range in words."""
        return f"norms between {self.least:.4g} and {self.greatest:.4g}"

    def sentence(self, rows: int, shown: str) -> str:
        """Return what the user should know, "" where all rows are of unit length."""
        if not self.off:
            return ""
        return (
            f"{self.off:,} of {rows:,} embeddings of {shown} had another length than 1 ({self}); "
            "they are normalised"
        )
