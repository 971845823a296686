"""Progress bars and tables on the terminal: progress on stderr, results on stdout."""

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

Advance = Callable[[int], None]

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


class Reporter:
    """Shows a run to a person; `quiet` leaves only results and errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._progress_console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        terminal = Console()
        # Piped output has no width of its own; figures must not be cut there.
        self._result_console = terminal if terminal.is_terminal else Console(width=120)

    def say(self, message: str) -> None:
        """Print a line about what goes on."""
        self._progress_console.print(message, highlight=False, markup=False)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Show a bar while inside; yields a function that advances it."""
        bar = Progress(*_COLUMNS, console=self._progress_console, disable=self._quiet)
        with bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def counted(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar once there is something to count; yields a function (done, total)."""
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

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of results; the first column is text, the others are figures."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))  # as it is: names of folders may look like markup
        self._result_console.print(table)
