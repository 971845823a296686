"""Benchmarks of whole commands: `bench fit | synthesize | memory | scaling | startup | plan`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, get_args

import click

from pipeline.align.settings import MethodName
from pipeline.cli.common import Output, common_options

_ROWS = click.IntRange(min=1000)
_DIMENSION = click.option("--dimension", type=click.IntRange(min=4), default=512, show_default=True)
_REPEATS = click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
_FOLDER = click.option(
    "--folder", type=click.Path(file_okay=False), help="Where the corpora are written for a while."
)


def _temporary(name: str, folder: str | None = None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f"anisoalign-{name}-", dir=folder)


@click.command()
@click.option(
    "--method",
    type=click.Choice(get_args(MethodName)),
    metavar="METHOD",
    default="anisoalign",
    show_default=True,
)
@click.option("--rows", type=_ROWS, default=100_000, show_default=True)
@click.option("--images", type=_ROWS, default=20_000, show_default=True)
@_DIMENSION
@_REPEATS
@common_options
def fit(
    method: MethodName, rows: int, images: int, dimension: int, repeats: int, output: Output
) -> dict[str, Any]:
    """Fit a method by the command and on tensors in memory."""
    from pipeline.benchmarks.fit import run_fit

    with _temporary("fit") as folder, output.reporter.counted("repetitions") as show:
        report = run_fit(
            Path(folder),
            method=method,
            rows=rows,
            images=images,
            dimension=dimension,
            repeats=repeats,
            progress=show,
        )
    result = report.to_mapping()
    title = f"Fitting {method} to {rows:,} texts and {images:,} images of width {dimension}"
    _show(output, title, "seconds", "in memory", result)
    return result


@click.command()
@click.option("--rows", type=_ROWS, default=1_000_000, show_default=True)
@_DIMENSION
@_REPEATS
@_FOLDER
@common_options
def synthesize(
    rows: int, dimension: int, repeats: int, folder: str | None, output: Output
) -> dict[str, Any]:
    """Go from stored embeddings to a verified dataset by ReAlign, and by a script of four passes.

    Writes about 12 KB a row of width 512 for a while.
    """
    from pipeline.benchmarks.synthesize import run_synthesize

    with _temporary("synthesize", folder) as inside, output.reporter.counted("runs") as show:
        report = run_synthesize(
            Path(inside), rows=rows, dimension=dimension, repeats=repeats, progress=show
        )
    result = report.to_mapping()
    title = f"ReAlign over {rows:,} stored embeddings of width {dimension}"
    _show(output, title, "rows/s", "four passes", result)
    peaks = [f"{one:,.0f}" for one in result["peak_memory_mb"].values()]
    output.reporter.table("Peak memory, MB", ["ours", "four passes"], [peaks])
    return result


@click.command()
@click.option("--rows", type=_ROWS, default=1_000_000, show_default=True)
@_DIMENSION
@_FOLDER
@common_options
def memory(rows: int, dimension: int, folder: str | None, output: Output) -> dict[str, Any]:
    """Compare the peak memory of a run's processes with that of a run over four times the rows.

    Writes about 16 KB a row of width 512 for a while.
    """
    from pipeline.benchmarks.memory import LARGER, run_memory

    with _temporary("memory", folder) as inside, output.reporter.counted("runs") as show:
        report = run_memory(Path(inside), rows=rows, dimension=dimension, progress=show)
    result = report.to_mapping()
    title = f"Memory over {LARGER * rows:,} rows of width {dimension}"
    _show(output, title, "peak, MB", f"{rows:,} rows", result)
    return result


@click.command()
@click.argument("captions", required=False)
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--pretrained", help="Weights; random ones by default.")
@click.option("--rows", type=_ROWS, default=1024, show_default=True)
@_REPEATS
@common_options
def scaling(
    captions: str | None,
    model: str,
    pretrained: str | None,
    rows: int,
    repeats: int,
    output: Output,
) -> dict[str, Any]:
    """Encode CAPTIONS by one worker and by two: actors of a machine, and nodes of one core."""
    from pipeline.benchmarks.encode_text import read_captions, weights
    from pipeline.benchmarks.scaling import run_scaling

    with _temporary("scaling") as folder, output.reporter.counted("steps") as show:
        report = run_scaling(
            Path(folder),
            read_captions(captions, rows, Path(folder) / "corpora"),
            model=model,
            pretrained=weights(model, pretrained),
            repeats=repeats,
            progress=show,
        )
    result = report.to_mapping()
    for name, part in result["parts"].items():
        _show(output, f"Encoding with {model}: two {name}", "captions/s", "baseline", part)
    return result


@click.command()
@common_options
def startup(output: Output) -> dict[str, Any]:
    """Wait for help, for a checked configuration, and for the first unit of a run."""
    from pipeline.benchmarks.startup import run_startup

    with output.reporter.counted("repetitions") as show:
        report = run_startup(show)
    result = report.to_mapping()
    for name, part in result["parts"].items():
        _show(output, name, "seconds", "Python alone", part)
    return result


@click.command()
@click.option("--captions", type=_ROWS, default=6_000, show_default=True)
@click.option("--embeddings", type=_ROWS, default=100_000, show_default=True)
@_DIMENSION
@_FOLDER
@common_options
def plan(
    captions: int, embeddings: int, dimension: int, folder: str | None, output: Output
) -> dict[str, Any]:
    """Compare what `plan` forecasts with runs over so many rows, and over ten times as many.

    Writes about 40 KB for each of the embeddings, of width 512, for a while.
    """
    from pipeline.benchmarks.plan import run_plan

    with _temporary("plan", folder) as inside, output.reporter.counted("commands") as show:
        report = run_plan(
            Path(inside),
            captions=captions,
            embeddings=embeddings,
            dimension=dimension,
            progress=show,
        )
    result = report.to_mapping()
    for name, part in result["parts"].items():
        _show(output, f"A run over {name}", "predicted, s", "measured", part)
    return result


def _show(output: Output, title: str, unit: str, baseline: str, result: dict[str, Any]) -> None:
    """Print a figure, its baseline, their ratio and the spread."""
    output.reporter.table(
        title,
        [unit, baseline, "ratio", "least", "most"],
        [
            [
                *(f"{result[name]:,.2f}" for name in ("value", "baseline", "ratio")),
                *(f"{one:,.2f}" for one in result["spread"]),
            ]
        ],
    )
