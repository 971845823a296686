"""Measuring methods on pairs that no fit has seen."""

from pipeline.align.settings import METHODS

_ABLATIONS = ("anisoalign-refine", "anisoalign-prior", "anisoalign-phase")

DEFAULT_METHODS = tuple(name for name in METHODS if name not in _ABLATIONS)
"""What is compared where nobody says otherwise: all but the ablations of AnisoAlign's losses."""
