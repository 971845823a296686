"""Alignment methods on plain tensors: `AnisoAlign(rank=32).fit(image, text).transform(text)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.align.ablations import AnisoAlignInit, AnisoAlignRadial
    from pipeline.align.anisoalign import AnisoAlign
    from pipeline.align.base import Aligner, PairedAligner
    from pipeline.align.baselines import Centroid, Identity, Moment, ReAlign, Unicorn
    from pipeline.align.diagnostic import Oracle
    from pipeline.align.registry import create_aligner, load_aligner
    from pipeline.align.seeded import C3, Permuted
    from pipeline.align.transports import BuresBlock, BuresGromov, BuresSubspace

__all__ = [
    "C3",
    "Aligner",
    "AnisoAlign",
    "AnisoAlignInit",
    "AnisoAlignRadial",
    "BuresBlock",
    "BuresGromov",
    "BuresSubspace",
    "Centroid",
    "Identity",
    "Moment",
    "Oracle",
    "PairedAligner",
    "Permuted",
    "ReAlign",
    "Unicorn",
    "create_aligner",
    "load_aligner",
]

_HOMES = {
    "C3": "seeded",
    "Aligner": "base",
    "AnisoAlign": "anisoalign",
    "AnisoAlignInit": "ablations",
    "AnisoAlignRadial": "ablations",
    "BuresBlock": "transports",
    "BuresGromov": "transports",
    "BuresSubspace": "transports",
    "Centroid": "baselines",
    "Identity": "baselines",
    "Moment": "baselines",
    "Oracle": "diagnostic",
    "PairedAligner": "base",
    "Permuted": "seeded",
    "ReAlign": "baselines",
    "Unicorn": "baselines",
    "create_aligner": "registry",
    "load_aligner": "registry",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that a configuration can be validated without loading torch.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"pipeline.align.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
