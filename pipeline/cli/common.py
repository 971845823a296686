"""What the commands share: arguments, options, how they talk and how they fail."""

from __future__ import annotations

import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from pipeline.report.events import JsonLines, JsonLogHandler, printable

config_argument = click.argument("config", type=click.Path(dir_okay=False))
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a configuration key, for example align.rank=32; may be repeated.",
)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has; the command takes an `Output` for them."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="End stdout with one JSON object."),
        click.option("-v", "--verbose", is_flag=True, help="Show logs, and tracebacks of errors."),
        click.option("-q", "--quiet", is_flag=True, help="Show results and errors only."),
        click.option(
            "--log-json", is_flag=True, help="Write events to stderr, one JSON object a line."
        ),
    ):
        command = option(command)

    @functools.wraps(command)
    def wrapped(
        *args: Any, verbose: bool, quiet: bool, as_json: bool, log_json: bool, **options: Any
    ) -> None:
        lines = JsonLines() if log_json else None
        _set_up_logging(lines, verbose, quiet)
        output = Output(verbose=verbose, quiet=quiet, as_json=as_json, lines=lines)
        try:
            result = command(*args, output=output, **options)
            if as_json and result is not None:
                click.echo(json.dumps(result, allow_nan=False))
        except click.ClickException:
            raise
        except Exception as error:
            _fail(error, verbose, lines)

    return wrapped


def _set_up_logging(lines: JsonLines | None, verbose: bool, quiet: bool) -> None:
    """Send log records to stderr, as text or as JSON lines."""
    if lines is None:
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
        return
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, handlers=[JsonLogHandler(lines)], force=True)
    logging.captureWarnings(True)


class Output:
    """How a command talks: made from the common options."""

    def __init__(
        self, *, verbose: bool, quiet: bool, as_json: bool, lines: JsonLines | None = None
    ) -> None:
        self.verbose = verbose
        self.quiet = quiet
        self.as_json = as_json
        self.lines = lines

    @property
    def shows_ray(self) -> bool:
        """Whether Ray may print to stderr, where it writes no JSON."""
        return self.verbose and self.lines is None

    @functools.cached_property
    def reporter(self) -> Any:
        """The progress bars and tables."""
        from pipeline.report.console import Reporter

        return Reporter(quiet=self.quiet, lines=self.lines)

    def show_flows(self, summary: dict[str, Any]) -> None:
        """Print the table of a run's flows."""
        from pipeline.cluster.run import summary_rows

        columns = ["flow", "rows", "rejected", "units", "kept", "seconds", "rows/s"]
        self.reporter.table("Summary", columns, summary_rows(summary))

    def show_methods(self, metrics: dict[str, Any]) -> None:
        """Print the table of methods."""
        from pipeline.report.methods import TABLE_METRICS, table_rows

        title = f"Methods on {metrics['n']:,} held-out pairs"
        self.reporter.table(title, ["method", *TABLE_METRICS.values()], table_rows(metrics))


def _fail(error: Exception, verbose: bool, lines: JsonLines | None = None) -> None:
    """Print one line, the traceback too when asked, and exit: 2 for the configuration, else 1."""
    from pipeline.config import ConfigError
    from pipeline.storage.locations import redact_url

    # Errors of a store, and those that they were raised from, hold signed URLs.
    trace = redact_url("".join(traceback.format_exception(error)))
    if isinstance(error, ValueError | OSError):
        message = str(error)
    else:
        message = f"{type(error).__name__}: {error}"
        if not verbose:
            message += " (use -v for the traceback)"
    message = redact_url(" ".join(message.split()))
    if lines is not None:
        more = {"traceback": trace} if verbose else {}
        lines.write("error", {"message": message, **more}, "error")
    else:
        if verbose:
            click.echo("\n".join(printable(line) for line in trace.splitlines()), err=True)
        # Paths and ids come from the corpus: nothing of them may steer the terminal.
        click.echo(f"error: {printable(message)}", err=True)
    sys.exit(2 if isinstance(error, ConfigError) else 1)
