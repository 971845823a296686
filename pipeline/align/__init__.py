"""Alignment methods on plain tensors: `AnisoAlign(rank=32).fit(image, text).transform(text)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.align.anisoalign import AnisoAlign, AnisoAlignInit
    from pipeline.align.base import Aligner
    from pipeline.align.baselines import Centroid, Identity, ReAlign
    from pipeline.align.registry import create_aligner, load_aligner

__all__ = [
    "Aligner",
    "AnisoAlign",
    "AnisoAlignInit",
    "Centroid",
    "Identity",
    "ReAlign",
    "create_aligner",
    "load_aligner",
]

_HOMES = {
    "Aligner": "base",
    "AnisoAlign": "anisoalign",
    "AnisoAlignInit": "anisoalign",
    "Centroid": "baselines",
    "Identity": "baselines",
    "ReAlign": "baselines",
    "create_aligner": "registry",
    "load_aligner": "registry",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that a configuration can be validated without loading torch.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"pipeline.align.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
