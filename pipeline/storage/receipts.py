"""Receipts: what one unit became, as one line of JSON beside its shard."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pipeline.storage import locations
from pipeline.storage.corpus import Unit
from pipeline.storage.locations import redact_url

JsonText = str | bytes
Kinds = Mapping[str, tuple[type, ...]]

_MOST_ROWS = 2**30
_MOST_BYTES = 2**40
"""No unit comes near these; what says more is damaged or forged."""
_KINDS: Kinds = {
    "unit": (str,),
    "fingerprint": (str,),
    "path": (str,),
    "rows": (int,),
    "bytes": (int,),
    "sha256": (str,),
    "quarantined": (dict,),
    "quarantine_path": (str, type(None)),
    "quarantine_rows": (int,),
    "quarantine_bytes": (int,),
    "quarantine_sha256": (str, type(None)),
    "seconds": (dict,),
    "truncated": (int,),
    "source": (dict,),
}
_OPTIONAL: Kinds = {"planned": (str,), "norms": (dict,)}
"""Fields that receipts of earlier releases don't have."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one unit became: its shard, its quarantine shard if any row was rejected, the cost.

    `unit` and `fingerprint` name the shard; paths are relative to the dataset folder; `bytes` and
    `sha256` are of the file; `seconds` is by stage; `truncated` counts captions that the encoder
    cut at its context length; `source` is the slice's path (redacted), start and stop row;
    `planned` the key that the plan gave the unit, "" where that is `unit`; `norms` says how many
    embeddings came in another length than 1 (`off`) and the `least` and `greatest`, empty if none.
    """

    unit: str
    fingerprint: str
    path: str
    rows: int
    bytes: int
    sha256: str
    quarantined: dict[str, int] = field(default_factory=dict)
    quarantine_path: str | None = None
    quarantine_rows: int = 0
    quarantine_bytes: int = 0
    quarantine_sha256: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    planned: str = ""
    norms: dict[str, float] = field(default_factory=dict)

    @property
    def planned_unit(self) -> str:
        """The key that the plan gave the unit, whatever rows it lost to others since."""
        return self.planned or self.unit

    @property
    def files(self) -> dict[str, int]:
        """The sizes in bytes of the files that the receipt names, by path."""
        files = {self.path: self.bytes}
        if self.quarantine_path is not None:
            files[self.quarantine_path] = self.quarantine_bytes
        return files

    def to_json(self) -> str:
        """Return the receipt as one line of JSON, keys sorted."""
        return json.dumps(
            dataclasses.asdict(self), sort_keys=True, ensure_ascii=False, allow_nan=False
        )

    @classmethod
    def from_json(cls, text: JsonText) -> Receipt:
        """Return the receipt that `to_json` wrote.

        Raises:
            ValueError: if it is not one.
        """
        return cls.from_dict(parsed(text, "receipt"))

    @classmethod
    def from_dict(cls, value: object) -> Receipt:
        """Return the receipt in a parsed JSON object.

        Raises:
            ValueError: if it is not one, or says what no receipt of ours can.
        """
        receipt = cls(**checked(value, _KINDS, "receipt", _OPTIONAL))
        check_counts(receipt.quarantined, "receipt")
        for name, most in (
            ("rows", _MOST_ROWS),
            ("quarantine_rows", _MOST_ROWS),
            ("truncated", _MOST_ROWS),
            ("bytes", _MOST_BYTES),
            ("quarantine_bytes", _MOST_BYTES),
        ):
            if not 0 <= getattr(receipt, name) <= most:
                raise ValueError(f"not a receipt: {name} is not between 0 and {most}")
        if not all(_is_amount(one) for one in receipt.seconds.values()):
            raise ValueError("not a receipt: seconds has a time that is none")
        if receipt.norms and (
            receipt.norms.keys() != {"off", "least", "greatest"}
            or not all(_is_amount(one) for one in receipt.norms.values())
        ):
            raise ValueError("not a receipt: norms are not three numbers")
        for path in receipt.files:
            if not path.isprintable():
                raise ValueError(f"not a receipt: {path!r} is not the name of a shard")
        return receipt


def source_of(unit: Unit) -> dict[str, Any]:
    """Return where a unit came from, fit for a receipt: path without credentials, rows.

    A unit of an embeddings dataset names the slice that its shard was made from.
    """
    if unit.source_path:
        start, stop = unit.source_start, unit.source_stop
        return {"path": redact_url(unit.source_path), "start": start, "stop": stop}
    return {"path": redact_url(unit.path), "start": unit.start, "stop": unit.stop}


def printable(text: str) -> str:
    """Return text with all that a terminal would obey or hide written as an escape (\\x1b)."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def parsed(text: JsonText, what: str) -> object:
    """Return a JSON value; raises ValueError if it is none, or holds NaN or an infinity."""

    def number(said: str) -> float:
        value = float(said)
        if not math.isfinite(value):
            raise ValueError(f"not a {what}: it holds the number {said}")
        return value

    try:
        return cast(object, json.loads(text, parse_constant=number, parse_float=number))
    except RecursionError as error:
        raise ValueError(f"not a {what}: nested too deeply") from error


def checked(
    value: object, kinds: Kinds, what: str, optional: Kinds | None = None
) -> dict[str, Any]:
    """Return `value` as a dict; raises ValueError unless it has exactly these keys and types."""
    if not isinstance(value, dict):
        raise ValueError(f"not a {what}: not a JSON object")
    every = {**kinds, **(optional or {})}
    missing = sorted(kinds.keys() - value.keys())
    unknown = sorted(printable(name) for name in value.keys() - every.keys())
    if missing or unknown:
        raise ValueError(
            f"not a {what}: missing {locations.listed(missing)}, "
            f"unknown {locations.listed(unknown)}"
        )
    for key, one in value.items():
        if not isinstance(one, every[key]) or (isinstance(one, bool) and bool not in every[key]):
            raise ValueError(f"not a {what}: {key} has the wrong type")
    return cast(dict[str, Any], value)


def check_counts(counts: Mapping[str, object], what: str) -> None:
    """Raise ValueError if a count of quarantined rows is none."""
    for count in counts.values():
        if type(count) is not int:
            raise ValueError(f"not a {what}: quarantined has a count that is no integer")
        if count < 0:
            raise ValueError(f"not a {what}: quarantined has a count below 0")


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and cast(float, value) >= 0
