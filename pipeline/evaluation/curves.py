"""The curves that a report draws: spectra, subspace overlaps, clouds, training losses, phases.

All are plain lists of floats, rounded to six digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import Aligner
from pipeline.evaluation.pairs import Pairs
from pipeline.geometry.diagnostics import Gap

_LADDER = 12
_PHASE_BLOCKS = 4
_PHASE_BINS = 24
_CLOUD_ROWS = 200
_CLOUD_METHODS = ("realign", "bures-gromov", "anisoalign")
_SMALLEST_GAP = 1e-12


def rounded(values: Tensor | Iterable[float]) -> list[float]:
    """Return numbers as floats of six significant digits."""
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return [float(f"{number:.6g}") for number in numbers]


def gap_curves(gap: Gap) -> dict[str, Any]:
    """Return the curves of the gap before alignment.

    `spectra` of images and texts, `subspace_overlap` (O_q and chance q / d for a ladder of sizes
    q up to d / 2, below n) and `residual_spectrum` (shares of the trace), all falling.
    """
    largest = max(1, min(gap.dimension // 2, gap.overlaps.shape[0]))
    sizes = sorted({round(size) for size in np.geomspace(1, largest, _LADDER)})
    return {
        "spectra": {"image": rounded(gap.image_spectrum), "text": rounded(gap.text_spectrum)},
        "subspace_overlap": {
            "sizes": sizes,
            "overlap": rounded(gap.overlaps[torch.tensor(sizes) - 1]),
            "chance": rounded(size / gap.dimension for size in sizes),
        },
        "residual_spectrum": rounded(gap.residual_spectrum / gap.residual_spectrum.sum()),
    }


class CloudView:
    """The three directions that clouds are seen in, from the mean of the image rows.

    The first is that of the centroid gap mu_i - mu_t; the other two are orthogonal to it: those in
    which the variances of both modalities differ most.
    """

    def __init__(self, held_out: Pairs) -> None:
        image, text = (cloud.to(torch.float64) for cloud in (held_out.image, held_out.text))
        self._mean = image.mean(dim=0)
        gap = self._mean - text.mean(dim=0)
        gap = gap / gap.norm().clamp_min(_SMALLEST_GAP)
        difference = torch.cov(image.T, correction=0) - torch.cov(text.T, correction=0)
        beside = torch.eye(len(gap), dtype=torch.float64) - torch.outer(gap, gap)
        values, vectors = torch.linalg.eigh(beside @ difference @ beside)
        most = vectors[:, values.abs().topk(2).indices]
        # The sign of an eigenvector is arbitrary: its largest coordinate is made positive.
        signs = most.gather(0, most.abs().argmax(dim=0, keepdim=True)).sign()
        self._directions = torch.cat((gap[:, None], most * signs), dim=1)

    def of(self, embeddings: Tensor) -> list[list[float]]:
        """Return the coordinates (3) of each of the first 200 rows of embeddings (n, d)."""
        rows = embeddings[:_CLOUD_ROWS].cpu().to(torch.float64) - self._mean
        return [rounded(place) for place in rows @ self._directions]


def shows_cloud(method: str) -> bool:
    """Return whether a method's substitutes are drawn as a cloud: those of a few are."""
    return method in _CLOUD_METHODS


def training_curves(aligners: Mapping[str, Aligner]) -> dict[str, dict[str, list[float]]]:
    """Return the losses of every trained method by stage."""
    return {
        name: {stage: rounded(losses) for stage, losses in aligner.history.items()}
        for name, aligner in aligners.items()
        if isinstance(aligner, AnisoAlign) and aligner.history
    }


def phase_method(aligners: Mapping[str, Aligner]) -> str | None:
    """Return whose phases are drawn: `anisoalign`, else the first AnisoAlign aligner, if any."""
    names = [name for name, aligner in aligners.items() if isinstance(aligner, AnisoAlign)]
    return "anisoalign" if "anisoalign" in names else next(iter(names), None)


def phase_curves(aligner: AnisoAlign, held_out: Pairs, substitute: Tensor) -> dict[str, Any]:
    """Return densities of phases in the 4 blocks of the aligner's frame with the most energy.

    `target` are held-out images, `source` the recentred texts y - mu_t + mu_i, `substitute` their
    substitutes (n, d); `edges` of the bins in radians.
    """
    weight = aligner.structure.weight
    blocks = weight.topk(min(_PHASE_BLOCKS, weight.shape[0])).indices
    fitted = aligner.tensors()
    recentred = held_out.text - fitted["text_mean"] + fitted["image_mean"]
    edges = torch.linspace(-math.pi, math.pi, _PHASE_BINS + 1, dtype=torch.float64)

    def densities(embeddings: Tensor) -> list[list[float]]:
        phases = aligner.polar(embeddings).phase[:, blocks].cpu().to(torch.float64)
        phases = phases.clamp(edges[0], edges[-1])  # -pi in float32 lies below -pi
        return [
            rounded(torch.histogram(phase, edges, density=True).hist)
            for phase in phases.T.contiguous()
        ]

    return {
        "blocks": blocks.tolist(),
        "edges": rounded(edges),
        "target": densities(held_out.image),
        "source": densities(recentred),
        "substitute": densities(substitute),
    }
