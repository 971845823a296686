"""Benchmarks of datasets on storage: `bench readers | exports | faults`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import Output, common_options
from pipeline.export import FORMATS


@click.command()
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


@click.command()
@click.option("--rows", type=click.IntRange(min=100), default=500_000, show_default=True)
@click.option("--dimension", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of rows and requests.")
@common_options
def readers(rows: int, dimension: int, seed: int, output: Output) -> dict[str, Any]:
    """Read a dataset of random rows by id and as a stream, and compare with plain pyarrow."""
    from pipeline.benchmarks.readers import run_readers

    with (
        tempfile.TemporaryDirectory(prefix="anisoalign-readers-") as folder,
        output.reporter.counted("steps") as show,
    ):
        report = run_readers(Path(folder), rows=rows, dimension=dimension, seed=seed, progress=show)
    result = report.to_mapping()
    rates = {f"ids/s, {size} a batch": rates for size, rates in result["lookup"].items()}
    rates["rows/s as a stream"] = result["stream"]
    output.reporter.table(
        f"Reading {rows:,} rows of {dimension} float16",
        ["", "ours", "pyarrow", "ratio"],
        [
            [name, f"{one['value']:,.0f}", f"{one['baseline']:,.0f}", f"{one['ratio']:.2f}"]
            for name, one in rates.items()
        ],
    )
    output.reporter.table(
        "Most memory of its own, in MB",
        ["", *(f"{count:,} rows" for count in (rows // 10, rows))],
        [
            [name, *(f"{peak:.0f}" for peak in one["peak"])]
            for name, one in result["memory_mb"].items()
        ],
    )
    return result


@click.command()
@click.option("--rows", type=click.IntRange(min=1), default=32_768, show_default=True)
@click.option("--dimension", type=click.IntRange(min=1), default=512, show_default=True)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    help="Measure this format alone; may be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the rows.")
@common_options
def exports(
    rows: int, dimension: int, formats: tuple[str, ...], seed: int, output: Output
) -> dict[str, Any]:
    """Export random datasets to every format; compare with a copy, and memory with ten times."""
    from pipeline.benchmarks.exports import run_exports

    with (
        tempfile.TemporaryDirectory(prefix="anisoalign-exports-") as folder,
        output.reporter.counted("formats") as show,
    ):
        report = run_exports(
            Path(folder),
            rows=rows,
            dimension=dimension,
            formats=formats or FORMATS,
            seed=seed,
            progress=show,
        )
    result = report.to_mapping()
    output.reporter.table(
        f"Exports of {rows:,} rows of width {dimension}; a copy of the shards makes "
        f"{result['baseline']:,.0f} rows/s",
        ["format", "rows/s", "MB/s", "of the copy", "peak MB", "peak MB of 10x rows"],
        [
            [
                name,
                f"{found['value']:,.0f}",
                f"{found['mb_per_s']:,.0f}",
                f"{found['ratio']:.2f}",
                *(f"{peak:,.0f}" for peak in found["peak_memory_mb"].values()),
            ]
            for name, found in result["formats"].items()
        ],
    )
    return result
