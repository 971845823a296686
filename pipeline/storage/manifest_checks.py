"""What a manifest's fields must be beside their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_fields(values: Mapping[str, Any]) -> None:
    """Raise ValueError if units, files, changes or counts in a manifest's values cannot be."""
    for one in (*values["duplicate_units"], *values["skipped_files"]):
        if not isinstance(one, dict):
            raise ValueError("not a manifest: a unit or file listed in it is no object")
    for one in values["duplicate_units"]:
        if not isinstance(one.get("unit"), str) or type(one.get("rows")) is not int:
            raise ValueError("not a manifest: a duplicate unit has no key or no rows")
    _check_changes(values.get("changes", {}))
    if min(values["rows"], values["units"]) < 0 or not 1 <= values["dimension"] <= 2**20:
        raise ValueError("not a manifest: rows, units or dimension cannot be")


def _check_changes(changes: Mapping[str, object]) -> None:
    lists = changes.values()
    if (changes and changes.keys() != {"added", "removed", "kept"}) or not all(
        isinstance(units, list) and all(isinstance(unit, str) for unit in units) for units in lists
    ):
        raise ValueError("not a manifest: changes are not lists of units added, removed and kept")
