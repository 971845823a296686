"""Finished datasets for trainers: `SubstituteDataset` streams rows, `SubstituteLookup` finds them.

Nothing here knows Ray. Both read any place that fsspec knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.readers.dataset import SubstituteDataset
    from pipeline.readers.lookup import SubstituteLookup

__all__ = ["SubstituteDataset", "SubstituteLookup"]

_HOMES = {"SubstituteDataset": "dataset", "SubstituteLookup": "lookup"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: torch takes seconds, and a lookup does without it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"pipeline.readers.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
