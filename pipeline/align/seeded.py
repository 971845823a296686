"""Methods that draw random numbers, each row its own: C3 and the permuted control (section 5)."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.align.base import MomentAligner, normalise
from pipeline.align.settings import AlignSettings, C3Settings, PermutedSettings
from pipeline.geometry.moments import Moments

Keys = npt.NDArray[np.uint64]


def row_keys(seed: int, ids: Sequence[str] | Tensor) -> Keys:
    """Return 128 bits a row, shape (n, 2): a digest of the seed and the row's id.

    For embeddings (n, d) instead of ids it is a digest of the seed and the row's float32 bytes.
    """
    named: Sequence[bytes]
    if isinstance(ids, Tensor):
        named = [row.tobytes() for row in ids.to("cpu", torch.float32).numpy()]
    else:
        named = [one.encode() for one in ids]
    seeded = hashlib.blake2b(f"{seed}:".encode(), digest_size=16)
    digests = []
    for name in named:
        digest = seeded.copy()
        digest.update(name)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64)


def gaussian_rows(keys: Keys, dimension: int) -> Tensor:
    """Return standard Gaussian rows (n, d), float32, each drawn from its own key (n, 2)."""
    rows = np.empty((len(keys), dimension), dtype=np.float32)
    bits = np.random.Philox(0)
    generator = np.random.Generator(bits)
    fresh = bits.state
    for row, key in zip(rows, keys, strict=True):
        # Setting the state is several times quicker than making a generator.
        fresh["state"] = {"counter": np.zeros(4, dtype=np.uint64), "key": key}
        bits.state = fresh
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


class SeededAligner(MomentAligner):
    """A method that draws random numbers, seeded from the seed and each row's id.

    So another batching or another order gives the same rows. Without ids the key of a row is a
    digest of its own float32 bytes, and equal rows draw alike.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def configuration(self) -> dict[str, Any]:
        """Return method and seed."""
        return {**super().configuration(), "seed": self.seed}

    @abstractmethod
    def map_keyed(self, text: Tensor, keys: Keys) -> Tensor:
        """Return the mapped rows (n, d) of text embeddings (n, d), drawing from keys (n, 2)."""

    def map(self, text: Tensor) -> Tensor:
        """Return the mapped rows (n, d) of text embeddings (n, d), keyed by their content."""
        return self.map_keyed(text.to(self._device, torch.float32), row_keys(self.seed, text))

    def _transform_rows(self, text: Tensor, ids: Sequence[str] | None, found: Tensor) -> None:
        """Write the mapped rows, keyed by their ids where there are any."""
        if ids is None:
            super()._transform_rows(text, ids, found)
        else:
            found.copy_(self.map_keyed(text, row_keys(self.seed, ids)))


class C3(SeededAligner):
    """C3, Connect, Collapse, Corrupt (arXiv 2401.08567): Norm(y - mu_t + mu_i + noise).

    The noise is isotropic, Gaussian, of a given standard deviation on each coordinate. C3's own
    code defaults to sqrt(0.016), which at d = 512 drowns a unit vector.
    """

    method = "c3"

    def __init__(self, deviation: float = 0.04, *, seed: int = 0) -> None:
        """Take the noise's standard deviation; raises ValueError when it is negative."""
        super().__init__(seed)
        self.settings = C3Settings(deviation=deviation)

    @classmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with `align.c3`."""
        return cls(settings.c3.deviation, seed=seed)

    def configuration(self) -> dict[str, Any]:
        """Return method, seed and deviation."""
        return {**super().configuration(), "deviation": self.settings.deviation}

    def map_keyed(self, text: Tensor, keys: Keys) -> Tensor:
        """Return Norm(y - mu_t + mu_i + noise), shape (n, d)."""
        shift = self._tensor("image_mean") - self._tensor("text_mean")
        noise = gaussian_rows(keys, text.shape[1]).to(self._device)
        return normalise(text + shift + self.settings.deviation * noise)


class Permuted(SeededAligner):
    """Negative control: a random image of the fitting set, whatever the text says.

    Drawn with replacement, so that every row depends on its own id alone; where rows are as many as
    images, about a third of the images is drawn twice or more and mixing stays a little below 1.

    Up to `images` of them are kept, chosen and ordered by a digest of their content, so that the
    order they come in plays no role.
    """

    method = "permuted"

    def __init__(self, images: int = 16_384, *, seed: int = 0) -> None:
        """Take how many images to keep; raises ValueError when there would be none."""
        super().__init__(seed)
        self.settings = PermutedSettings(images=images)

    @classmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with `align.permuted`."""
        return cls(settings.permuted.images, seed=seed)

    def configuration(self) -> dict[str, Any]:
        """Return method, seed and the number of images."""
        return {**super().configuration(), "images": self.settings.images}

    @property
    def images_wanted(self) -> int:
        """Number of images that are kept to draw from."""
        return self.settings.images

    def fit_moments(self, image: Moments, text: Moments, images: Tensor | None = None) -> Self:
        """Keep images (n, d) to draw from; returns self."""
        super().fit_moments(image, text)
        assert images is not None, "the control draws from images"
        keys = row_keys(self.seed, images)
        order = np.lexsort((keys[:, 1], keys[:, 0]))[: self.settings.images]
        kept = images[torch.from_numpy(order).to(images.device)]
        self._tensors["images"] = kept.to(self._device, torch.float32)
        return self

    def map_keyed(self, text: Tensor, keys: Keys) -> Tensor:
        """Return an image for each key, normalised, shape (n, d)."""
        del text
        images = self._tensor("images")
        drawn = (keys[:, 0] % np.uint64(len(images))).astype(np.int64)
        return normalise(images[torch.from_numpy(drawn).to(images.device)])
