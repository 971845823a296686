"""The commands that measure: `bench NAME`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import Output, common_options


@click.group()
def bench() -> None:
    """Measure the pipeline; each ends with one JSON object under --json."""


@bench.command()
@click.option("--kills", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--units", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the moments.")
@common_options
def faults(kills: int, units: int, seed: int, output: Output) -> dict[str, Any]:
    """Kill a night at random moments, resume it, and compare it with an uninterrupted one."""
    from pipeline.benchmarks.faults import run_faults

    with (
        tempfile.TemporaryDirectory(prefix="anisoalign-faults-") as folder,
        output.reporter.counted("kills") as show,
    ):
        report = run_faults(Path(folder), kills=kills, seed=seed, units=units, progress=show)
    result = report.to_mapping()
    output.reporter.table(
        f"{kills} kills of a night over {units} units: the same rows, nothing written twice",
        ["", "seconds"],
        [
            ["uninterrupted", f"{result['baseline']:.1f}"],
            ["killed and resumed, median", f"{result['value']:.1f}"],
            ["ratio", f"{result['ratio']:.2f}"],
        ],
    )
    return result
