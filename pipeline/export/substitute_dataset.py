"""Substitute image embeddings in place of images, for LLaVA's trainers: needs numpy and torch.

This file stands by itself: copy it beside the trainer, or put its folder on PYTHONPATH.

    rows = SubstituteDataset("FOLDER")
    rows[0]  # {"id": str, "conversations": [...], "embedding": float32 tensor (d,)}

Or keep the trainer's own dataset class and replace the line that opens the image:

    embeddings = SubstituteEmbeddings("FOLDER")
    embedding = embeddings[sample["image"]]  # "embeddings/00012.npy#17" -> float32 tensor (d,)
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

MOST_OPEN = 128
"""Files that are mapped at once, in each worker."""


class SubstituteEmbeddings:
    """The embeddings of an export; their files are memory-mapped, so workers share them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: OrderedDict[str, Any] = OrderedDict()

    def __getitem__(self, image: str) -> torch.Tensor:
        """Return the embedding (d,), float32, that a sample's `image` names.

        Raises:
            ValueError: if it names no row of a file of this folder.
        """
        name, separator, row = image.rpartition("#")
        if not separator or not row.isdecimal():
            raise ValueError(f"{image!r} is not like embeddings/00012.npy#17")
        if name not in self._files:
            path = (self.folder / name).resolve()
            if self.folder.resolve() not in path.parents:
                raise ValueError(f"{image!r} leads out of {self.folder}")
            self._files[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            if len(self._files) > MOST_OPEN:  # each map holds a file open
                self._files.popitem(last=False)
        self._files.move_to_end(name)
        array = self._files[name]
        if int(row) >= len(array):
            raise ValueError(f"{image!r}: the file has {len(array)} rows")
        return torch.from_numpy(array[int(row)].astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps behind: each worker opens its own."""
        return {"folder": self.folder, "_files": OrderedDict()}


class SubstituteDataset(Dataset):  # type: ignore[type-arg]
    """A map-style dataset: id, conversations and embedding of each sample.

    `samples` is the list to read, by default the export's own; another list of the same shape, for
    example a subset, can take its place.
    """

    def __init__(self, folder: str | Path, samples: str | Path | None = None) -> None:
        path = Path(folder) / "samples.json" if samples is None else Path(samples)
        self.samples: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        self.embeddings = SubstituteEmbeddings(folder)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        return {
            "id": sample["id"],
            "conversations": sample["conversations"],
            "embedding": self.embeddings[sample["image"]],
        }
