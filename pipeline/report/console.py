"""What a run says: progress on stderr, as bars or as JSON lines, results on stdout, events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pipeline.report.events import Heartbeat, JsonLines, Observer, printable

Advance = Callable[[int], None]

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


class Reporter:
    """Shows a run to a person, or with `lines` to a machine; tells observers of its events.

    `quiet` leaves only results and errors.
    """

    def __init__(self, *, quiet: bool = False, lines: JsonLines | None = None) -> None:
        self._lines = None if quiet else lines
        self._run_id = ""
        self._named_lines = lines
        self._observers: list[Observer] = []
        self._quiet = quiet or lines is not None
        self._progress_console = Console(stderr=True, quiet=self._quiet, soft_wrap=True)
        terminal = Console()
        # Piped output has no width of its own; figures must not be cut there.
        self._result_console = terminal if terminal.is_terminal else Console(width=120)

    @property
    def run_id(self) -> str:
        """Which run this is; it stands in every event."""
        return self._run_id

    @run_id.setter
    def run_id(self, value: str) -> None:
        self._run_id = value
        if self._named_lines is not None:
            self._named_lines.run_id = value

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """Call an observer with every event while inside."""
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def event(self, name: str, /, *, level: str = "info", **fields: Any) -> None:
        """Tell the observers, and the log of a machine, what happened."""
        told = {"run_id": self._run_id, **fields}
        for observer in self._observers:
            observer(name, told)
        if self._lines is not None:
            self._lines.write(name, fields, level)

    def say(self, message: str) -> None:
        """Print a line about what goes on."""
        if self._lines is not None:
            self._lines.write("message", {"message": message})
        self._progress_console.print(printable(message), highlight=False, markup=False)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Show a bar while inside; yields a function that advances it."""
        if self._lines is not None:
            yield Heartbeat(self.event, title, total).advance
            return
        bar = Progress(*_COLUMNS, console=self._progress_console, disable=self._quiet)
        with bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def counted(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar once there is something to count; yields a function (done, total)."""
        if self._lines is not None:
            yield Heartbeat(self.event, title, None).reach
            return
        bar = Progress(*_COLUMNS, console=self._progress_console, disable=self._quiet)
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            if not tasks:
                bar.start()
                tasks.append(bar.add_task(title, total=total))
            bar.update(tasks[0], completed=done, total=total)

        try:
            yield show
        finally:
            if tasks:
                bar.stop()

    @contextmanager
    def training(self) -> Iterator[Callable[[str, int, int, float], None]]:
        """Show a bar for each training stage; yields a function (stage, step, steps, loss)."""
        if self._lines is not None:
            yield self._training_events()
            return
        columns = (
            TextColumn("training {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        bar = Progress(*columns, console=self._progress_console, disable=self._quiet)
        tasks: dict[str, Any] = {}

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=steps, note="")
            bar.update(tasks[stage], completed=step, note=f"loss {loss:.4f}")

        with bar:
            yield show

    def _training_events(self) -> Callable[[str, int, int, float], None]:
        beats: dict[str, Heartbeat] = {}

        def show(stage: str, step: int, steps: int, loss: float) -> None:
            beat = beats.setdefault(stage, Heartbeat(self.event, f"training {stage}", steps))
            beat.reach(step, steps, loss=loss)

        return show

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of results; the first column is text, the others are figures."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(
                *(Text(printable(cell)) for cell in row)
            )  # as it is: names of folders may look like markup
        self._result_console.print(table)
