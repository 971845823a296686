"""Evaluations as files: metrics.json, curves.json and split.json in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.geometry import Round
from pipeline.names import Names
from pipeline.storage import locations


def write_results(folder: Path, found: Comparison, rounds: Sequence[Round]) -> None:
    """Write metrics.json, curves.json and, where pairs were split, split.json; each file whole.

    Numbers are finite or None. split.json holds the positions of one split, or of several under
    `splits` with their seeds.

    Raises:
        ValueError: when the folder cannot be written.
    """
    _write(folder / "metrics.json", found.metrics, indent=1)
    _write(folder / "curves.json", found.curves)
    splits = [(one.seed, one.split.to_mapping()) for one in rounds if one.split is not None]
    if len(splits) == 1:
        _write(folder / "split.json", splits[0][1])
    elif splits:
        numbered = [{"seed": seed, **positions} for seed, positions in splits]
        _write(folder / "split.json", {"splits": numbered})
    else:
        (folder / "split.json").unlink(missing_ok=True)  # of an evaluation before


def read_results(folder: Path) -> dict[str, Any]:
    """Return {"metrics": ..., "curves": ...} of an evaluated folder.

    Raises:
        ValueError: when there is no evaluation, or its files are not what was written.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    metrics = _read(folder / "metrics.json")
    for key in ("methods", "gap", "n", "seed"):
        if key not in metrics:
            raise ValueError(f"{folder / 'metrics.json'} has no {key}: it is no evaluation's")
    try:
        Names.from_mapping(metrics.get("names"))
    except ValueError as error:
        raise ValueError(f"{folder / 'metrics.json'}: {error}") from None
    return {"metrics": metrics, "curves": _read(folder / "curves.json")}


def _write(path: Path, values: Any, indent: int | None = None) -> None:
    locations.write_bytes(str(path), json.dumps(values, indent=indent, allow_nan=False).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes(), parse_constant=lambda _: None)  # NaN is not JSON
    except FileNotFoundError:
        raise ValueError(
            f"there is no {path}; write one with `anisoalign evaluate geometry PAIRS --out "
            f"{path.parent}`"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON; evaluate again with --out {path.parent}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object, not {type(values).__name__}")
    return values
