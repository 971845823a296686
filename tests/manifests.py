"""Kubernetes manifests against the published field lists of their kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TYPES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "kuberay_fields.json").read_text(encoding="utf-8")
)["types"]

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")


def problems(kind: Any, value: Any, where: str) -> Iterator[str]:
    """Yield what a manifest's value has that its type lacks, what it lacks, and wrong types."""
    if isinstance(kind, list):
        if value not in kind:
            yield f"{where}: {value!r} is not one of {', '.join(kind)}"
    elif kind in _PRIMITIVES:
        if not _PRIMITIVES[kind](value):
            yield f"{where}: {value!r} is no {kind}"
    elif kind.startswith("["):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
            return
        for index, one in enumerate(value):
            yield from problems(kind[1:-1], one, f"{where}[{index}]")
    elif not isinstance(value, dict):
        yield f"{where}: {value!r} is no mapping"
    elif kind.startswith("{"):
        for key, one in value.items():
            yield from problems(kind[1:-1], one, f"{where}.{key}")
    elif kind not in TYPES:
        yield f"{where}: the type {kind} is not in kuberay_fields.json; add its fields"
    else:
        fields = TYPES[kind]["fields"]
        for key in TYPES[kind]["required"]:
            if key not in value:
                yield f"{where}.{key}: missing"
        for key, one in value.items():
            if key not in fields:
                yield f"{where}.{key}: unknown field"
            else:
                yield from problems(fields[key], one, f"{where}.{key}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_PRIMITIVES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "number": lambda value: _is_integer(value) or isinstance(value, float),
    "quantity": lambda value: _is_integer(value) or bool(_QUANTITY.fullmatch(str(value))),
}
