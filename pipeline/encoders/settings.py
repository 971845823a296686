"""Which settings of an encoder belong together; without loading torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.encoders.interface import CLASS

_NAME = r"[^\W\d]\w*"
_CLASS_NAME = re.compile(rf"{CLASS}{_NAME}(\.{_NAME})*:{_NAME}")
_OPEN_CLIP_ALONE = ("pretrained", "precision", "compile", "token_budget", "image_batch")


def check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError, the key first, for settings that the encoder would not look at."""
    model, options = settings["model"], settings["options"]
    if not model.startswith(CLASS):
        if options:
            raise ValueError(
                f"options: these are for a class of your own, {CLASS}package.module:Class, not "
                f"for {model}"
            )
        return
    if _CLASS_NAME.fullmatch(model) is None:
        raise ValueError(f"model: {model} is not of the form {CLASS}package.module:Class")
    for name in _OPEN_CLIP_ALONE:
        if settings[name] != defaults[name]:
            raise ValueError(
                f"{name}: a class of your own is not told; put what it takes in encoder.options"
            )
    if "device" in options:
        raise ValueError("options.device: set encoder.device, which is handed on")


def check_device(device: str, gpus: float | str) -> None:
    """Raise ValueError, the key first, for a device that an actor with these GPUs has not."""
    kind, _, index = device.partition(":")
    if gpus == "auto":
        gpus = float(kind == "cuda")
    assert not isinstance(gpus, str)
    if kind == "cpu" and gpus:
        raise ValueError(
            f"ray.gpus_per_actor: {gpus:g} GPUs for an encoder.device that is cpu; set one of them "
            "to auto"
        )
    if kind == "cuda" and not gpus:
        raise ValueError(f"encoder.device: {device}, but ray.gpus_per_actor is 0; set it to auto")
    if kind == "cuda" and int(index or 0) >= max(1.0, gpus):
        raise ValueError(
            f"encoder.device: {device} is not among the GPUs of an actor, counted from 0, which "
            f"ray.gpus_per_actor says are {gpus:g}; use cuda, or give actors more"
        )
