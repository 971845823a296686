"""The files that an encoder comes from; looked at without torch or open_clip."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

LOCAL_DIR = "local-dir:"
DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "encoder"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def quick_identity(model: str, pretrained: str | None) -> list[object]:
    """Return what tells, without loading anything, that an encoder is the same as before.

    Of files the sizes and times; of a tag its name, whose weights are fixed.
    """
    folder = DEMO_FOLDER if model == DEMO else Path(model.removeprefix(LOCAL_DIR)).expanduser()
    # All of a folder: tokenizers and towers have files of their own beside config and weights.
    named = sorted(folder.iterdir()) if folder.is_dir() else []
    if pretrained is not None and Path(pretrained).is_file():
        named.append(Path(pretrained))
    states = [(path.name, *file_state(path)) for path in named if path.is_file()]
    return [model, pretrained, states, version("torch"), version("open_clip_torch")]


def file_state(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns
