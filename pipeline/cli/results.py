"""The command that looks at what a run wrote."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from pipeline.cli.common import Output, common_options


@click.command()
@click.argument("dataset")
@click.option("--version", help="Check this version, not the current one.")
@common_options
def verify(dataset: str, version: str | None, output: Output) -> dict[str, Any]:
    """Check every shard of DATASET against its manifest; exit 1 names what is wrong."""
    from pipeline.storage.places import redact_url
    from pipeline.storage.receipts import printable
    from pipeline.storage.verification import verify as run_verify

    shown = printable(redact_url(dataset))
    with output.reporter.counted("verifying") as show:
        report = run_verify(dataset, progress=show, version=version)
    result = {
        "version": report.version,
        "shards": report.shards,
        "rows": report.rows,
        "problems": [{"path": problem.path, "what": problem.what} for problem in report.problems],
    }
    for problem in report.problems:
        click.echo(f"{printable(problem.path)}: {printable(problem.what)}", err=True)
    if report.problems:
        if output.as_json:
            click.echo(json.dumps(result, allow_nan=False))
        click.echo(f"error: {shown}: {len(report.problems)} problems found", err=True)
        sys.exit(1)
    click.echo(f"{shown}: version {report.version}, {report.shards} shards, {report.rows} rows: OK")
    return result
