"""Embeddings between Arrow and torch without a copy."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def tensor_of(embeddings: npt.NDArray[np.float32]) -> Tensor:
    """Return an array (n, d) as a tensor of the same memory, which may be read-only: not to change.

    What Ray hands to a task lies in memory that all processes share, and torch cannot express that.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(embeddings)
