"""A low target resource: what the methods give when few images are there to fit on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.align.registry import create_aligner
from pipeline.align.settings import AlignSettings
from pipeline.align.training import seed_of
from pipeline.evaluation.comparison import Counted, substitutes
from pipeline.evaluation.pairs import Clouds, Pairs
from pipeline.geometry.alignment_metrics import PairedMeasurement
from pipeline.geometry.shrinkage import Shrinkage
from pipeline.names import DEFAULT_NAMES, Names

_FEWEST = 3  # images that support a frame of one block
# ReAlign reads the trace alone, which no shrinkage changes.
_FITS: tuple[tuple[str, tuple[Shrinkage, ...]], ...] = (
    ("realign", ("none",)),
    ("bures-gromov", ("none", "ledoit-wolf")),
    ("anisoalign", ("none", "ledoit-wolf")),
)


def check_image_counts(
    counts: Sequence[int],
    images: int,
    settings: AlignSettings,
    names: Names = DEFAULT_NAMES,
) -> None:
    """Check numbers of images before anything is fitted; raises ValueError when one cannot be."""
    fewest = _FEWEST if settings.rank == "auto" else settings.rank + 1
    for count in counts:
        if not fewest <= count <= images:
            raise ValueError(
                f"--image-counts has {count}, but there are {images} {names.targets} to fit on, "
                f"and align.rank={settings.rank} needs {fewest} or more; choose counts between"
            )


def target_size(
    fitting: Clouds,
    held_out: Pairs,
    settings: AlignSettings,
    counts: Sequence[int],
    seed: int = 0,
    progress: Counted | None = None,
) -> list[dict[str, Any]]:
    """Fit on fewer images and all texts, and measure on held-out pairs.

    Smaller subsets are parts of larger ones, seeded. Returns points {"images", "method",
    "shrinkage", "metrics"}.

    Raises:
        ValueError: see `check_image_counts`.
    """
    check_image_counts(counts, fitting.image.shape[0], settings)
    generator = torch.Generator().manual_seed(seed_of(seed, "fewer images"))
    order = torch.randperm(fitting.image.shape[0], generator=generator)
    shared = PairedMeasurement.of(held_out.image, held_out.text, seed=seed)
    fits = [
        (count, method, shrinkage)
        for count in sorted(set(counts))
        for method, shrinkages in _FITS
        for shrinkage in shrinkages
    ]
    points = []
    for done, (count, method, shrinkage) in enumerate(fits, start=1):
        aligner = create_aligner(method, replace(settings, shrinkage=shrinkage), seed)
        aligner.fit(fitting.image[order[:count]], fitting.text)
        points.append(
            {
                "images": count,
                "method": method,
                "shrinkage": shrinkage,
                "metrics": shared.measure(substitutes(aligner, held_out)).metrics,
            }
        )
        if progress is not None:
            progress(done, len(fits))
    return points
