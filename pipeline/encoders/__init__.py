"""Encoders, open_clip's and others: captions and images in, embeddings out.

The names below are imported on first use, so that `import pipeline.encoders` loads neither torch
nor open_clip.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.encoders.files import quick_identity
    from pipeline.encoders.image_tower import ImageEncoding
    from pipeline.encoders.interface import CLASS, Encoder
    from pipeline.encoders.open_clip_encoder import OpenClipEncoder
    from pipeline.encoders.text_tower import TextEncoding

__all__ = [
    "CLASS",
    "Encoder",
    "ImageEncoding",
    "OpenClipEncoder",
    "TextEncoding",
    "quick_identity",
]

_MODULES = {
    "CLASS": "interface",
    "Encoder": "interface",
    "ImageEncoding": "image_tower",
    "OpenClipEncoder": "open_clip_encoder",
    "TextEncoding": "text_tower",
    "quick_identity": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
