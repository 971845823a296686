"""The command that says what a run would take: `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import Output, common_options, config_argument, set_option

_COUNT = click.IntRange(min=1)


@click.command()
@config_argument
@set_option
@click.option("--rows", type=_COUNT, help="Rows of the source (`text:`); by default all of it.")
@click.option("--images", type=_COUNT, help="Rows of the target (`image:`); by default all.")
@click.option("--cpus", type=_COUNT, help="CPUs of all machines; those measured by default.")
@click.option(
    "--gpus", type=click.IntRange(min=0), help="GPUs of all machines; those measured by default."
)
@click.option(
    "--price", type=click.FloatRange(min=0), help="Of an hour of all machines, in any currency."
)
@click.option(
    "--calibration",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Take what was measured before, here or elsewhere, instead of measuring.",
)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Keep what is measured in a file.",
)
@common_options
def plan(
    config: str,
    settings: Sequence[str],
    rows: int | None,
    images: int | None,
    cpus: int | None,
    gpus: int | None,
    price: float | None,
    calibration: str | None,
    save: str | None,
    output: Output,
) -> dict[str, Any]:
    """Forecast what a run of CONFIG takes: time, storage, memory, shards and cost.

    Measures the run itself on samples of its corpora for a minute or two, unless --calibration
    names what was measured before.
    """
    from pipeline.cluster.forecasting import configuration_facts, workload
    from pipeline.config import load_config
    from pipeline.forecast.prediction import predict
    from pipeline.storage import locations

    if calibration is not None and save is not None:
        raise click.UsageError("--save keeps what is measured; with --calibration nothing is")
    loaded = load_config(config, settings)
    if calibration is not None:
        costs = _read(calibration)
        costs.check_fits(configuration_facts(loaded), loaded.names)
    else:
        if save is not None:
            locations.check_writable(str(Path(save).absolute().parent))
        costs = _measured(loaded, output)
        if save is not None:
            locations.write_bytes(str(Path(save).absolute()), costs.to_json().encode())
    work = workload(loaded, costs, rows=rows, images=images, cpus=cpus, gpus=gpus, price=price)
    found = predict(costs, work).called(loaded.names)
    _show(output, found, costs, work, loaded.names)
    return {
        **found.to_mapping(),
        "cpus": work.cpus,
        "gpus": work.gpus,
        "machine": costs.machine,
        "disturbed": costs.disturbed,
        "configuration": costs.configuration,
    }


def _measured(config: Any, output: Output) -> Any:
    from pipeline.benchmarks.machine import machine_facts
    from pipeline.cluster.calibration import calibrate

    return calibrate(config, machine_facts(), output.reporter, verbose=output.shows_ray)


def _read(path: str) -> Any:
    """Return a stored calibration; raises ValueError naming the file."""
    from pipeline.forecast.calibration import Calibration

    try:
        return Calibration.from_json(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the calibration {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _show(output: Output, found: Any, costs: Any, work: Any, names: Any) -> None:
    """Print the stages, and then what they come to."""
    from pipeline.report.amounts import duration, gibibytes

    stages = [
        [
            stage.title,
            duration(stage.seconds),
            f"{100 * stage.seconds / found.seconds:.1f} %" if found.seconds else "-",
            stage.bound_by,
        ]
        for stage in found.stages
    ]
    machines = f"{work.cpus:,} CPUs" + (f" and {work.gpus:,} GPUs" if work.gpus else "")
    images = f"and {found.images:,} {names.targets}, " if found.images else ""
    title = f"Forecast of {found.rows:,} rows\n{images}on {machines}"
    output.reporter.table(title, ["stage", "time", "share", "bound by"], stages)
    totals = [
        ["time", duration(found.seconds)],
        ["hours", f"{found.seconds / 3600:,.2f}"],
        ["rows a second", f"{found.rows / found.seconds:,.0f}" if found.seconds else "-"],
        ["shards", f"{found.shards:,}"],
        *([f"storage: {name}", gibibytes(size)] for name, size in found.storage.items()),
        ["storage in all", gibibytes(sum(found.storage.values()))],
        ["memory of a worker", gibibytes(found.worker_bytes)],
        ["memory of the driver", gibibytes(found.driver_bytes)],
    ]
    if found.cost is not None:
        totals.append(["cost", f"{found.cost:,.2f}"])
    output.reporter.table("In all", ["", "value"], totals)
    worst = found.bottleneck
    click.echo(f"bottleneck: {worst.title} ({worst.bound_by}). {found.advice}")
