"""What travels with a block: its unit, what the stages so far have to say of it, its failure.

A block keeps all rows of its unit, rejected ones too, so that it is never empty and the envelope,
a dictionary-encoded constant column, is never lost. A unit that fails becomes a block of one row
that holds the envelope alone, so that the other units go on.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Protocol

import pyarrow as pa

from pipeline.schema import ENVELOPE
from pipeline.storage.corpus import Unit
from pipeline.storage.locations import StoreError, UnwritableError, redact_url

logger = logging.getLogger(__name__)

_REASON_LENGTH = 500


class DeviceLostError(RuntimeError):
    """The device or the model of this process works no longer: only a new process helps."""


@dataclass(frozen=True)
class Failure:
    """Why a unit failed: the stage, the reason in one line, and how many attempts it took.

    `unwritable`: the output takes no file, so every other unit would fail as well.
    """

    stage: str
    reason: str
    attempts: int = 1
    unwritable: bool = False


@dataclass
class Envelope:
    """A block's unit, seconds by stage, captions cut by the encoder, the unit's failure, norms.

    `norms` are those of embeddings given in another length than 1, as receipts hold them.
    """

    unit: Unit
    seconds: dict[str, float] = field(default_factory=dict)
    truncated: int = 0
    failure: Failure | None = None
    norms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to the seconds of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def seal(self, table: pa.Table) -> pa.Table:
        """Return the table with this envelope as its last column."""
        content = json.dumps(
            {
                "unit": self.unit.to_json(),
                "seconds": self.seconds,
                "truncated": self.truncated,
                "failure": None if self.failure is None else asdict(self.failure),
                "norms": self.norms,
            }
        )
        indices = pa.array([0] * table.num_rows, type=pa.int8())
        column = pa.DictionaryArray.from_arrays(indices, pa.array([content]))
        return table.append_column(ENVELOPE, column)

    def seal_failed(self) -> pa.Table:
        """Return the block of a unit that failed: one row, this envelope."""
        assert self.failure is not None, "the unit did not fail"
        sealed = self.seal(pa.table({"row": pa.array([0], pa.int64())}))
        return sealed.select([ENVELOPE])

    @classmethod
    def open(cls, block: pa.Table) -> tuple[pa.Table, Envelope]:
        """Return the table without its envelope, and the envelope."""
        assert block.num_rows > 0, "a block holds every row of its unit, so it has at least one"
        content = json.loads(block.column(ENVELOPE)[0].as_py())
        failure = content["failure"]
        envelope = cls(
            Unit.from_json(content["unit"]),
            content["seconds"],
            content["truncated"],
            None if failure is None else Failure(**failure),
            content["norms"],
        )
        return block.drop_columns([ENVELOPE]), envelope


class Attempts(Protocol):
    """Counts how often a stage has begun a unit without coming to an end with it."""

    @property
    def limit(self) -> int:
        """Attempts a unit has before its stage gives it up."""
        ...

    def begin(self, stage: str, unit_key: str) -> int:
        """Return the number of this attempt, from 1."""
        ...

    def end(self, stage: str, unit_key: str) -> None:
        """Say that the process outlived the attempt, whatever came of it."""
        ...


@dataclass(frozen=True)
class Uncounted:
    """Attempts where nothing outlives the process that could count them."""

    limit: int = 1

    def begin(self, stage: str, unit_key: str) -> int:
        """Return 1."""
        del stage, unit_key
        return 1

    def end(self, stage: str, unit_key: str) -> None:
        """Do nothing."""


class UnitStage(ABC):
    """A stage whose failure costs one unit, not the run.

    A unit that raises, or whose attempts killed their process up to the limit, becomes a failed
    block that later stages pass on.

    Raises:
        DeviceLostError: when this process can do nothing any more.
    """

    stage: ClassVar[str]
    attempts: Attempts

    @abstractmethod
    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        """Return what becomes of a unit's rows; whatever it raises is the unit's failure."""

    def open(self, block: pa.Table) -> tuple[pa.Table, Envelope]:
        """Return a block's rows and envelope."""
        return Envelope.open(block)

    def failed(self, envelope: Envelope) -> pa.Table:
        """Return the block of a unit that failed here or before."""
        return envelope.seal_failed()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the unit's next block, a failed one if it failed."""
        table, envelope = self.open(block)
        if envelope.failure is not None:
            return self.failed(envelope)
        key = envelope.unit.key
        number = self.attempts.begin(self.stage, key)
        if number > self.attempts.limit:
            envelope.failure = Failure(
                self.stage, f"killed its worker {_times(number - 1)}", attempts=number - 1
            )
            return self.failed(envelope)
        try:
            result = self.process(table, envelope)
        except DeviceLostError:
            raise  # no end: this attempt is about to cost its process
        except Exception as error:
            # Not exc_info: errors of a store hold signed URLs.
            trace = redact_url("".join(traceback.format_exception(error)))
            logger.warning("unit %s failed in %s\n%s", key, self.stage, trace)
            unwritable = isinstance(error, UnwritableError)
            envelope.failure = Failure(self.stage, reason_of(error), unwritable=unwritable)
            result = self.failed(envelope)
        self.attempts.end(self.stage, key)
        return result


class FirstStage(UnitStage):
    """A stage that begins with a unit alone: a one-row block of its JSON."""

    def open(self, block: pa.Table) -> tuple[pa.Table, Envelope]:
        """Return an envelope for the unit; there are no rows yet."""
        assert block.num_rows == 1, "one unit is one block"
        return block, Envelope(Unit.from_json(block.column(ENVELOPE)[0].as_py()))


def failure_row(envelope: Envelope, schema: pa.Schema) -> pa.Table:
    """Return what a last stage gives for a unit that failed: `unit`, `failure`, the rest null."""
    assert envelope.failure is not None, "the unit did not fail"
    row = {"unit": envelope.unit.key, "failure": json.dumps(asdict(envelope.failure))}
    return pa.Table.from_pylist([row], schema=schema)


def reason_of(error: BaseException) -> str:
    """Return an exception as one line without credentials, with its type unless a ValueError."""
    message = redact_url(" ".join(str(error).split()))[:_REASON_LENGTH]
    if type(error) in (ValueError, UnwritableError, StoreError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
