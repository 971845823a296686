"""Files of pairs, good and bad, and the command that measures methods on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.cluster.samples import invoke, unit_cloud


def write_pairs(path: Path, **arrays: np.ndarray) -> str:
    """Write an .npz; returns its path."""
    np.savez(path, **arrays)
    return str(path)


def evaluate(pairs: str, *arguments: str) -> dict[str, Any]:
    """Call `evaluate geometry`; returns the metrics it printed."""
    result = invoke("evaluate", "geometry", pairs, "-q", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


def bad_pairs(kind: str, folder: Path) -> Path:
    """Write a file that cannot be used as pairs, in the named way; returns its path."""
    image, text = unit_cloud(60, 8, 0.3, 1), unit_cloud(60, 8, -0.3, 2)
    path = folder / "bad.npz"
    if kind == "no file":
        return path
    if kind == "text file":
        path.write_text("not an archive")
    elif kind == "cut":
        write_pairs(path, image=image, text=text)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "one array":
        np.save(folder / "bad.npy", image)
        return folder / "bad.npy"
    elif kind == "missing array":
        write_pairs(path, image=image, caption=text)
    elif kind == "pickled":
        write_pairs(path, image=image, text=np.array([{}] * 60, dtype=object))
    elif kind == "integers":
        write_pairs(path, image=image, text=np.ones((60, 8), np.int64))
    elif kind == "widths":
        write_pairs(path, image=image, text=text[:, :6])
    elif kind == "lengths":
        write_pairs(path, image=image, text=text[:50])
    elif kind == "nan":
        text[7, 0] = np.nan
        write_pairs(path, image=image, text=text)
    elif kind == "zero":
        image[3] = 0
        write_pairs(path, image=image, text=text)
    elif kind == "few":
        write_pairs(path, image=image[:30], text=text[:30])
    return path
