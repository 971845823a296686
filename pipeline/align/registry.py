"""Aligners by name: making them from settings and reading them back from artifacts."""

from __future__ import annotations

from pipeline.align.ablations import (
    AnisoAlignInit,
    AnisoAlignPhase,
    AnisoAlignPrior,
    AnisoAlignRadial,
    AnisoAlignRefine,
)
from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.base import Aligner
from pipeline.align.baselines import Centroid, Identity, Moment, ReAlign, Unicorn
from pipeline.align.diagnostic import Oracle
from pipeline.align.seeded import C3, Permuted
from pipeline.align.settings import METHODS, AlignSettings
from pipeline.align.transports import BuresBlock, BuresGromov, BuresSubspace
from pipeline.storage.artifacts import artifact_fingerprint, read_artifact
from pipeline.storage.locations import redact_url

_CLASSES: dict[str, type[Aligner]] = {
    aligner.method: aligner
    for aligner in (
        Identity,
        Centroid,
        Moment,
        Permuted,
        Oracle,
        C3,
        Unicorn,
        ReAlign,
        BuresBlock,
        BuresSubspace,
        BuresGromov,
        AnisoAlignRadial,
        AnisoAlignInit,
        AnisoAlignRefine,
        AnisoAlignPrior,
        AnisoAlignPhase,
        AnisoAlign,
    )
}
assert set(_CLASSES) == set(METHODS)


def create_aligner(method: str, settings: AlignSettings | None = None, seed: int = 0) -> Aligner:
    """Return an unfitted aligner of a method; raises ValueError for an unknown name."""
    if method not in _CLASSES:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    return _CLASSES[method].from_settings(settings or AlignSettings(), seed)


def load_aligner(url: str) -> Aligner:
    """Read an aligner from an artifact folder at any fsspec URL.

    Raises:
        ValueError: when it is missing, damaged, or of an unknown method.
    """
    configuration, tensors = read_artifact(url)
    method = configuration.get("method")
    if method not in _CLASSES:
        raise ValueError(f"{redact_url(url)} holds an aligner of the unknown method {method!r}")
    aligner = _CLASSES[method].from_configuration(configuration).restore(tensors)
    aligner.provenance = dict(configuration["provenance"])
    aligner.fingerprint = artifact_fingerprint(configuration, tensors)
    return aligner
