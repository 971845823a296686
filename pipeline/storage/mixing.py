"""Mixing corpora: how many rows of each part, which ones, and the plan of them all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import SOURCE
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus, Part, Unit, schema_text
from pipeline.storage.slices import combined

_HEX_OF_64_BITS = 16


def quotas(parts: Sequence[Part], rows: Sequence[int]) -> list[int]:
    """Return how many of each part's rows are taken.

    Weights are shares of the mixture: as many rows as the parts have, each at most `max_rows`, in
    these proportions, so that one part at least is taken as far as it goes. Without weights every
    part is.

    Raises:
        ValueError: if some parts have a weight and others don't.
    """
    most = [
        count if part.max_rows is None else min(count, part.max_rows)
        for part, count in zip(parts, rows, strict=True)
    ]
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        return most
    if len(weights) < len(parts):
        without = [part.name for part in parts if part.weight is None]
        raise ValueError(
            f"sources {locations.listed(without)} have no weight while others do; give all or none"
        )
    scale = min(count / weight for count, weight in zip(most, weights, strict=True))
    # Rounding up, as 3 * (7 / 3) may lie below 7; the part that sets the scale is taken whole.
    return [
        min(count, max(1, round(scale * weight)))
        for count, weight in zip(most, weights, strict=True)
    ]


def mixed_units(corpus: Corpus, units: Sequence[Sequence[Unit]]) -> list[Unit]:
    """Return the units of each part (in plan order) that are taken, under the part's name.

    Whole units are taken in an order drawn from the corpus's seed and their content, so that what
    is added to a part changes little of the choice, and of the last one some rows.
    """
    rows = [sum(unit.rows for unit in of_part) for of_part in units]
    wanted = quotas(corpus.parts, rows)
    columns = _columns(corpus.parts, units)
    passed = schema_text(columns.append(pa.field(SOURCE, pa.string())))
    mixed = []
    for part, of_part, count in zip(corpus.parts, units, wanted, strict=True):
        taken = _taken(of_part, count, corpus.seed)
        mixed += [
            _renamed(unit, part, taken[unit.key], passed, corpus.seed)
            for unit in of_part
            if unit.key in taken
        ]
    return mixed


def chosen_rows(unit: Unit) -> npt.NDArray[np.int64] | None:
    """Return which rows (n,) of its slice a unit takes, ascending; None if all."""
    whole = unit.stop - unit.start
    if unit.rows == whole:
        return None
    # By the key that the plan gave: a unit that loses rows to others goes on under another.
    key = (unit.planned_key or unit.key).encode()
    seed = int(hashlib.blake2b(key, digest_size=8).hexdigest(), _HEX_OF_64_BITS)
    places = np.random.default_rng(seed).choice(whole, unit.rows, replace=False, shuffle=False)
    return np.sort(places)


def _columns(parts: Sequence[Part], units: Sequence[Sequence[Unit]]) -> pa.Schema:
    """Return the passed-through columns, in the types that all parts have them in.

    Raises:
        ValueError: if two parts have one in two types.
    """
    schemas = [_plain(of_part[0].passed_through_schema) for of_part in units]
    for part, schema in zip(parts, schemas, strict=True):
        for column, first in zip(schema, schemas[0], strict=True):
            if column.type != first.type:
                raise ValueError(
                    f"the column {column.name} is {first.type} in the source {parts[0].name} and "
                    f"{column.type} in {part.name}; make them one type, or do not pass it through"
                )
    return schemas[0]


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return a schema with strings and bytes of one kind, whatever their offsets' width."""
    kinds = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    return pa.schema([one.with_type(kinds.get(one.type, one.type)) for one in schema])


def _taken(units: Sequence[Unit], count: int, seed: int) -> dict[str, int]:
    """Return how many rows are taken of each unit, by key; those of none are left out."""
    taken: dict[str, int] = {}
    for unit in sorted(units, key=lambda unit: combined("taken", seed, unit.key)):
        if count <= 0:
            break
        taken[unit.key] = min(unit.rows, count)
        count -= unit.rows
    return taken


def _renamed(unit: Unit, part: Part, rows: int, passed: str, seed: int) -> Unit:
    """Return a unit under a key that says which part it is of and which rows are taken."""
    chosen = None if rows == unit.rows else [rows, seed]
    key = combined("part", part.name, unit.key, chosen)
    return dataclasses.replace(unit, key=key, rows=rows, part=part.name, passed_through=passed)
