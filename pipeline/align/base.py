"""The interface of every alignment method: fit, transform, save, load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pipeline.align.settings import AlignSettings
from pipeline.geometry.moments import MeanSum, Moments
from pipeline.storage.artifacts import write_artifact

_ROWS_ON_DEVICE = 16_384
"""Rows that are mapped together, which bounds memory."""
_ROWS_IN_CACHE = 1024
"""The same on a CPU: what is made of them stays in its cache from one operation to the next."""
_SMALLEST_NORM = 1e-12
_COMMON = frozenset({"method", "provenance"})  # in every artifact's config.json
_NORM_TOLERANCE = 5e-3  # what float16 storage leaves of a unit norm, with room


def normalise(embeddings: Tensor) -> Tensor:
    """Return unit rows, shape (n, d)."""
    return torch.nn.functional.normalize(embeddings, dim=-1)


def _inverse_norms(rows: Tensor) -> Tensor:
    """Return one over the length of each row (n, d), shape (n, 1), of a zero row a large number."""
    return rows.norm(dim=1, keepdim=True).clamp_min_(_SMALLEST_NORM).reciprocal_()


class NotFittedError(ValueError):
    """An aligner was used before it was fitted."""


class Aligner(ABC):
    """Moves text embeddings into the image cloud.

    `fit` sees unpaired unit rows of both modalities; `transform` maps text embeddings (n, d) to
    substitute image embeddings (n, d), float32, unit rows unless the class says otherwise (then
    whoever reads them as embeddings normalises them). Methods that calibrate subtract the mean
    mu-hat of the mapped corpus and add the image mean (section 4.4c); the state of mu-hat is kept
    as a mergeable sum and count.
    """

    method: ClassVar[str]
    calibrates: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = True

    provenance: dict[str, Any]
    """What the artifact says of its making (encoder, corpora, counts); set by save and load."""
    fingerprint: str | None
    """Content digest of the artifact it was saved to or loaded from."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._calibration: MeanSum | None = None
        self._device = torch.device("cpu")
        self.provenance: dict[str, Any] = {}
        self.fingerprint: str | None = None

    # -- fitting ---------------------------------------------------------------------------------

    @abstractmethod
    def fit(self, image: Tensor, text: Tensor) -> Self:
        """Fit on unpaired unit rows, `image` (n, d) and `text` (k, d); returns self.

        Raises:
            ValueError: when widths differ, a cloud is empty, or values are not finite.
        """

    @abstractmethod
    def map(self, text: Tensor) -> Tensor:
        """Return the mapped, not yet calibrated rows e' (n, d) of text embeddings (n, d)."""

    def moved(self, text: Tensor) -> Tensor:
        """Return rows (n, d) in the directions of e', of whatever length: those of `map`."""
        return self.map(text)

    def mean_of_mapped(self, text: Tensor) -> MeanSum:
        """Return the partial state of mu-hat over text embeddings (n, d)."""
        state = MeanSum.zero(text.shape[1])
        for rows in text.split(self.rows_at_once):
            state = state.merge(MeanSum.of(self.map(rows.to(self._device))))
        return state

    @property
    def calibration(self) -> MeanSum | None:
        """The sum and count behind mu-hat, None before calibration."""
        return self._calibration

    def calibrate(self, state: MeanSum) -> Self:
        """Set mu-hat from the merged state over the corpus; returns self."""
        if self.calibrates:
            self._calibration = state
            shift = self._tensor("image_mean").cpu().to(torch.float64) - state.mean
            self._tensors["calibration_shift"] = shift.to(torch.float32).to(self._device)
        return self

    def transform(self, text: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """Return substitute image embeddings (n, d), float32, of text embeddings (n, d).

        `ids` are the rows' ids; only methods that draw random numbers (`SeededAligner`) look at
        them.

        Raises:
            NotFittedError: before `fit`.
            ValueError: when the width differs from that of the fit, or there is not one id a row.
        """
        self._check_rows(text, ids)
        found = torch.empty(text.shape, dtype=torch.float32, device=self._device)
        step = self.rows_at_once
        with torch.no_grad():
            for start in range(0, len(text), step):
                rows = text[start : start + step].to(self._device, torch.float32)
                keyed = None if ids is None else ids[start : start + step]
                self._transform_rows(rows, keyed, found[start : start + step])
        return found

    def _transform_rows(self, text: Tensor, ids: Sequence[str] | None, found: Tensor) -> None:
        """Write the substitutes of text embeddings (n, d), on the device, to `found` (n, d)."""
        del ids
        if not self.calibrates:
            found.copy_(self.map(text))
            return
        # Norm(e' + shift) with e' = Norm(moved): a row's length and the shift in one pass.
        moved = self.moved(text)
        torch.addcmul(self._tensor("calibration_shift"), moved, _inverse_norms(moved), out=found)
        found.mul_(_inverse_norms(found))

    @property
    def rows_at_once(self) -> int:
        """Rows that are mapped together on the aligner's device."""
        return _ROWS_IN_CACHE if self._device.type == "cpu" else _ROWS_ON_DEVICE

    # -- state -----------------------------------------------------------------------------------

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise NotFittedError(f"the {self.method} aligner is not fitted: call fit first")
        return self._tensors[name]

    @property
    def images_wanted(self) -> int:
        """Number of image rows that a fit looks at beside the merged statistics, at most."""
        return 0

    @property
    def dimension(self) -> int:
        """Width d of the embeddings it was fitted on."""
        return self._tensor("image_mean").shape[0]

    def _check_rows(self, text: Tensor, ids: Sequence[str] | None) -> None:
        if text.ndim != 2 or text.shape[1] != self.dimension:
            raise ValueError(
                f"text embeddings have shape {tuple(text.shape)}, but the aligner was fitted on "
                f"width {self.dimension}; use the encoder it was fitted with"
            )
        if ids is not None and len(ids) != text.shape[0]:
            raise ValueError(f"{len(ids)} ids for {text.shape[0]} text embeddings; give one a row")

    def to(self, device: torch.device | str) -> Self:
        """Move the aligner to a device; returns self."""
        self._device = torch.device(device)
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        return self

    def configuration(self) -> dict[str, Any]:
        """Return method and settings, stored in the artifact's config.json.

        Unfitted, it is all that the fit depends on beside the two clouds.
        """
        return {"method": self.method}

    def tensors(self) -> dict[str, Tensor]:
        """Return everything fitted, on the CPU: the content of the artifact's safetensors file."""
        named = {name: tensor.cpu().contiguous() for name, tensor in self._tensors.items()}
        if self._calibration is not None:
            for name, tensor in self._calibration.tensors().items():
                named[f"calibration.{name}"] = tensor
        return named

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with what it uses of the `align` section and the seed."""

    @classmethod
    @abstractmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Self:
        """Return an unfitted aligner with the settings of `configuration()`."""

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over what `tensors()` returned; returns self."""
        state = {name: tensor for name, tensor in tensors.items() if "." not in name}
        calibration = with_prefix(tensors, "calibration.")
        self._tensors = state
        self._calibration = MeanSum.from_tensors(calibration) if calibration else None
        return self

    def save(
        self,
        url: str,
        provenance: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Write the artifact folder (config.json, model.safetensors); returns its fingerprint.

        `provenance` (JSON-able: encoder, corpora, counts) is stored beside the settings,
        `statistics` of the fitting data beside the tensors, under `statistics.`.
        """
        if provenance is not None:
            self.provenance = dict(provenance)
        configuration = {**self.configuration(), "provenance": self.provenance}
        kept = {f"statistics.{name}": tensor for name, tensor in (statistics or {}).items()}
        self.fingerprint = write_artifact(url, configuration, {**self.tensors(), **kept})
        return self.fingerprint


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, the prefix removed."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def check_clouds(image: Tensor, text: Tensor) -> None:
    """Check two clouds of embeddings, (n, d) and (k, d), before a fit.

    Raises:
        ValueError: when one is not two-dimensional or is empty, widths differ, or a value is not
            finite or a row zero.
    """
    for name, cloud in (("image", image), ("text", text)):
        if cloud.ndim != 2 or cloud.shape[0] == 0:
            raise ValueError(
                f"{name} embeddings must be (n, d) with n > 0, not {tuple(cloud.shape)}"
            )
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image embeddings have width {image.shape[1]}, text embeddings {text.shape[1]}; both "
            "must come from one encoder"
        )
    for name, cloud in (("image", image), ("text", text)):
        norms = cloud.norm(dim=1)
        if not bool(torch.isfinite(norms).all()):
            raise ValueError(f"{name} embeddings hold NaN or infinite values; remove these rows")
        if bool((norms == 0).any()):
            raise ValueError(f"{name} embeddings hold zero rows; remove them")
        if bool(((norms - 1).abs() > _NORM_TOLERANCE).any()):
            raise ValueError(f"{name} embeddings must be unit rows; divide each by its norm first")


class MomentAligner(Aligner):
    """A method that needs nothing but the moments of both clouds."""

    def fit(self, image: Tensor, text: Tensor) -> Self:
        """Fit on unpaired unit rows, `image` (n, d) and `text` (k, d); returns self."""
        check_clouds(image, text)
        self.fit_moments(Moments.of(image), Moments.of(text), image)
        if self.calibrates:
            self.calibrate(self.mean_of_mapped(text.to(torch.float32)))
        return self

    def fit_moments(self, image: Moments, text: Moments, images: Tensor | None = None) -> Self:
        """Fit on merged moments; methods that calibrate still need `calibrate`; returns self.

        `images` (n, d) are for methods that look at rows too: see `images_wanted`.
        """
        self._tensors = {
            "image_mean": image.mean.to(self._device, torch.float32),
            "text_mean": text.mean.to(self._device, torch.float32),
        }
        return self

    @classmethod
    def from_settings(cls, settings: AlignSettings, seed: int) -> Self:
        """Return an unfitted aligner; a method without settings uses none."""
        del settings, seed
        return cls()

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Self:
        """Return an unfitted aligner with the settings of `configuration()`."""
        return cls(**{name: configuration[name] for name in configuration if name not in _COMMON})


class PairedAligner(MomentAligner):
    """A diagnostic method that looks at pairs, which no other method ever sees.

    It says how far a gap can be closed at all, and moves no corpus: `evaluate geometry` alone
    runs it, through `transform_pairs`.
    """

    @abstractmethod
    def transform_pairs(self, image: Tensor, text: Tensor) -> Tensor:
        """Return substitutes (n, d) of texts (n, d), given their images (n, d) in the same order.

        Raises:
            ValueError: when the shapes differ.
        """

    def map(self, text: Tensor) -> Tensor:
        """Refuse: there is no map of text alone; raises ValueError."""
        del text
        raise ValueError(self._refusal())

    def transform(self, text: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """Refuse: there is no map of text alone; raises ValueError."""
        del text, ids
        raise ValueError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"{self.method} is a diagnostic method that uses pairs; it runs in "
            "`anisoalign evaluate geometry` only, choose another align.method"
        )
