"""From the name of a device to the device."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """Return a torch device; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"encoder.device: {name!r} is no torch device; try auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"encoder.device: there is no GPU {name!r} here; use auto or cpu")
    return device
