"""Events of a run: what machines watch, as numbers or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

Observer = Callable[[str, Mapping[str, Any]], None]
"""Called with an event's name and its fields, for every event of a run."""


def printable(text: str) -> str:
    """Return text with everything escaped that could steer a terminal or hide in a line."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


class JsonLines:
    """Writes one JSON object a line to stderr: time, level, run_id, event and the rest."""

    def __init__(self) -> None:
        self.run_id = ""

    def write(self, event: str, fields: Mapping[str, Any], level: str = "info") -> None:
        """Write a line; what JSON cannot hold is written as text."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "run_id": self.run_id,
            "event": event,
            **fields,
        }
        try:
            text = json.dumps(line, allow_nan=False, default=str)
        except ValueError:
            text = json.dumps({name: str(value) for name, value in line.items()})
        print(text, file=sys.stderr, flush=True)


class JsonLogHandler(logging.Handler):
    """Sends the records of `logging` to the same lines, as event `log`."""

    def __init__(self, lines: JsonLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; what it was raised with goes along as text."""
        # Here, not above: storage takes its time to import, and light commands don't need it.
        from pipeline.storage.locations import redact_url

        fields = {"logger": record.name, "message": redact_url(record.getMessage())}
        if record.exc_info and record.exc_info[0] is not None:
            trace = logging.Formatter().formatException(record.exc_info)
            fields["traceback"] = redact_url(trace)
        self._lines.write("log", fields, record.levelname.lower())


class Heartbeat:
    """Says how far counted work is: at its start, at its end, and now and then between."""

    def __init__(
        self, report: Callable[..., None], title: str, total: int | None, every_s: float = 30.0
    ) -> None:
        self._report, self._title, self._total = report, title, total
        self._every_s = every_s
        self._done = 0
        self._said_at = -every_s

    def advance(self, count: int) -> None:
        """Count work that was done."""
        self.reach(self._done + count, self._total)

    def reach(self, done: int, total: int | None, **fields: Any) -> None:
        """Say how far it is, unless that was just said and it is not the end."""
        self._done, self._total = done, total
        now = time.monotonic()
        if done == total or now - self._said_at >= self._every_s:
            self._said_at = now
            self._report("progress", title=self._title, done=done, total=total, **fields)
