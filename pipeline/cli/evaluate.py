"""The commands that measure methods: evaluate geometry, downstream and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.align.settings import METHODS
from pipeline.cli.common import Output, common_options, set_option
from pipeline.evaluation import DEFAULT_METHODS


@click.group()
def evaluate() -> None:
    """Measure alignment methods."""


def _methods(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not names:
        raise click.BadParameter("it names no method")
    for name in names:
        if name not in METHODS:
            raise click.BadParameter(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return names


def _counts(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    try:
        return [int(count) for count in (value or "").split(",") if count.strip()]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of whole numbers like 100,200") from None


def _geometry_settings(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    for setting in value:
        key = setting.partition("=")[0].strip()
        if key == "align.method":
            raise click.BadParameter("align.method says nothing here; name methods with --methods")
        if not key.startswith(("align.", "names.")):
            raise click.BadParameter(
                f"{key} says nothing here; only keys of the align section do, such as align.rank, "
                "and names.source and names.target"
            )
    return value


@evaluate.command()
@click.argument("pairs", type=click.Path(dir_okay=False))
@click.option("--split", default=0.5, show_default=True, help="Share of the pairs to fit on.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split and of the fits.")
@click.option(
    "--splits",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Splits, with seeds from --seed on, each fitted and measured; numbers are their means, "
    "curves are of the first.",
)
@click.option(
    "--fitting",
    type=click.Path(dir_okay=False),
    help="Fit on this .npz, unpaired arrays `image` (n, d) and `text` (k, d), and measure on all "
    "PAIRS; --splits then varies the seed of the fits.",
)
@click.option(
    "--methods",
    default=",".join(DEFAULT_METHODS),
    callback=_methods,
    help="Methods to compare, separated by commas; without it all but the ablations of the losses.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="Folder for the report: index.html, figures, metrics.json, curves.json, split.json.",
)
@click.option(
    "--frontier/--no-frontier",
    "with_frontier",
    default=None,
    help="Measure closed-form transports over rank and displacement too; on with --out.",
)
@click.option(
    "--image-counts",
    callback=_counts,
    metavar="N,N,...",
    help="Fit some methods on that many rows of the target too, with and without shrinkage.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    help="Take the sections `align` (all but align.method: --methods says which) and `names` from "
    "this file.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_geometry_settings,
    metavar="KEY=VALUE",
    help="Set a key of the sections `align` and `names`, for example align.rank=32; may be "
    "repeated.",
)
@common_options
def geometry(
    pairs: str,
    split: float,
    seed: int,
    splits: int,
    fitting: str | None,
    methods: list[str],
    out: str | None,
    with_frontier: bool | None,
    image_counts: list[int],
    config: str | None,
    settings: Sequence[str],
    output: Output,
) -> dict[str, Any]:
    """Compare methods on PAIRS, an .npz with arrays `image` and `text`.

    With other names.source and names.target the arrays are named by these. Methods are fitted on
    one part, without its pairs, and measured on the other.
    """
    from pipeline.config import apply_settings, load_config, parse_config

    if out is None and (with_frontier or image_counts):
        raise click.UsageError("--frontier and --image-counts are drawn in the report: give --out")
    given = click.get_current_context().get_parameter_source("split")
    if fitting is not None and given is ParameterSource.COMMANDLINE:
        raise click.UsageError("--split says nothing with --fitting: all PAIRS are measured")
    loaded = load_config(config, settings) if config else parse_config(apply_settings({}, settings))
    from pipeline.storage.locations import check_writable

    if out is not None:
        check_writable(out)
    from pipeline.evaluation.geometry import evaluate_geometry, separate_rounds, split_rounds
    from pipeline.evaluation.pairs import read_clouds, read_pairs

    paired = read_pairs(pairs, loaded.names)
    if fitting is None:
        rounds = split_rounds(paired, split, seed, splits)
    else:
        rounds = separate_rounds(read_clouds(fitting, loaded.names), paired, seed, splits)
    found = evaluate_geometry(
        rounds,
        methods,
        loaded.align,
        output.reporter,
        with_frontier=out is not None if with_frontier is None else with_frontier,
        image_counts=image_counts,
        names=loaded.names,
    )
    output.show_methods(found.metrics)
    if out is not None:
        from pipeline.evaluation.results import write_results
        from pipeline.report.page import write_report

        write_results(Path(out), found, rounds)
        title = f"Alignment methods on {Path(pairs).name}"
        page = write_report(Path(out), found.metrics, found.curves, title)
        click.echo(f"report: {page}")
    return found.metrics


@evaluate.command()
@click.argument("pairs", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    required=True,
    help="Configuration; its `downstream` section says what is trained.",
)
@set_option
@click.option("--quick", is_flag=True, help="Fewer seeds, methods and captions: ten minutes.")
@common_options
def downstream(
    pairs: str | None, config: str, settings: Sequence[str], quick: bool, output: Output
) -> dict[str, Any]:
    """Train small multimodal LMs on each method's substitutes and ask them about real images.

    PAIRS (.npz or .parquet with `image`, `text` and `caption`) takes the place of the packaged
    world. Writes downstream/ in the output; a run that was stopped goes on with its next trial.
    """
    from pipeline.cluster.downstream import QUICK_SETTINGS, check_downstream, evaluate_downstream
    from pipeline.cluster.lifecycle import run_flow
    from pipeline.cluster.resources import DOWNSTREAM
    from pipeline.config import load_config
    from pipeline.report.downstream_tables import downstream_rows

    loaded = load_config(config, (*(QUICK_SETTINGS if quick else ()), *settings))
    check_downstream(loaded, pairs=pairs is not None)
    given = None
    if pairs is not None:
        from pipeline.evaluation.downstream.captioned_pairs import read_captioned_pairs

        given = read_captioned_pairs(pairs)

    def flow(config: Any, reporter: Any) -> dict[str, Any]:
        return evaluate_downstream(config, reporter, given)

    summary = run_flow(loaded, DOWNSTREAM, flow, output.reporter, verbose=output.shows_ray)
    columns = ["trained on", "method", "average", "interval", "closed"]
    output.reporter.table("Asked about real images", columns, downstream_rows(summary))
    click.echo(f"report: {summary['report']}")
    return summary


@evaluate.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path())
@click.option(
    "--out", required=True, type=click.Path(file_okay=False), help="Folder for index.html."
)
@common_options
def compare(folders: Sequence[str], out: str, output: Output) -> dict[str, Any]:
    """Set evaluations side by side: each DIR was written by `evaluate geometry --out DIR`."""
    if len(folders) < 2:
        raise click.UsageError("a comparison needs two folders or more")
    labelled = _labelled(folders)
    if Path(out).resolve() in {path.resolve() for path in labelled.values()}:
        raise click.UsageError(f"--out {out} is one of the folders to compare; give another")
    from pipeline.evaluation.results import read_results
    from pipeline.report.comparison import write_comparison
    from pipeline.report.methods import TABLE_METRICS, run_rows
    from pipeline.storage.locations import check_writable

    runs = {label: read_results(folder) for label, folder in labelled.items()}
    check_writable(out)
    page = write_comparison(runs, Path(out))
    metrics = {label: found["metrics"] for label, found in runs.items()}
    columns = ["method", "run", *TABLE_METRICS.values()]
    output.reporter.table(f"Methods in {len(runs)} runs", columns, run_rows(metrics))
    click.echo(f"report: {page}")
    return {"report": str(page), "runs": metrics}


def _labelled(folders: Sequence[str]) -> dict[str, Path]:
    """Return folders by name, with as many of the folders above as tell them apart."""
    paths = [Path(folder) for folder in folders]
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise click.UsageError("a folder is named twice")
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(labels, paths, strict=True))
