"""The command line. Heavy modules load inside the commands, so that `--help` is quick."""

from __future__ import annotations

import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline import __version__

_CONFIG = click.argument("config", type=click.Path(dir_okay=False))
_SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a configuration key, for example align.rank=32; may be repeated.",
)
_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Plan the units and say what would be done, without Ray."
)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="End stdout with one JSON object."),
        click.option("-v", "--verbose", is_flag=True, help="Show logs, and tracebacks of errors."),
        click.option("-q", "--quiet", is_flag=True, help="Show results and errors only."),
    ):
        command = option(command)

    @functools.wraps(command)
    def wrapped(*args: Any, verbose: bool, quiet: bool, as_json: bool, **options: Any) -> None:
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
        try:
            result = command(
                *args, output=_Output(verbose=verbose, quiet=quiet, as_json=as_json), **options
            )
        except click.ClickException:
            raise
        except Exception as error:
            _fail(error, verbose)
        else:
            if as_json and result is not None:
                click.echo(json.dumps(result))

    return wrapped


class _Output:
    """How a command talks: made from the common options."""

    def __init__(self, *, verbose: bool, quiet: bool, as_json: bool) -> None:
        self.verbose = verbose
        self.quiet = quiet
        self.as_json = as_json

    @functools.cached_property
    def reporter(self) -> Any:
        from pipeline.report.console import Reporter

        return Reporter(quiet=self.quiet)


def _fail(error: Exception, verbose: bool) -> None:
    """Print one line, the traceback too when asked, and exit: 2 for the configuration, else 1."""
    from pipeline.config import ConfigError

    if verbose:
        traceback.print_exc()
    if isinstance(error, ValueError | OSError):
        message = str(error)
    else:
        message = f"{type(error).__name__}: {error}"
        if not verbose:
            message += " (use -v for the traceback)"
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2 if isinstance(error, ConfigError) else 1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="anisoalign")
def cli() -> None:
    """Turn text corpora into substitute image embeddings for multimodal LLM training."""


# -- runs ------------------------------------------------------------------------------------------


def _show_flows(output: _Output, summary: dict[str, Any]) -> None:
    from pipeline.cluster.run import summary_rows

    columns = ["flow", "rows", "rejected", "units", "kept", "seconds", "rows/s"]
    output.reporter.table("Summary", columns, summary_rows(summary))


def _show_plan(config: Any, output: _Output, *sides: Any) -> dict[str, Any]:
    """Plan the named sides without Ray and print a table."""
    from pipeline.cluster.corpora import plan_corpus, source_corpus

    plans = {}
    for side in sides:
        corpus = source_corpus(config, side, output.reporter)
        planned = plan_corpus(config, corpus, side, output.reporter)
        plans[side] = {
            "path": corpus.shown,
            "rows": planned.rows,
            "units": len(planned.units),
            "duplicate_units": len(planned.duplicate_units),
            "skipped_files": len(planned.skipped_files),
            "encode": not corpus.holds_embeddings,
        }
    rows = [
        [side, values["path"], *(f"{values[name]:,}" for name in ("rows", "units"))]
        for side, values in plans.items()
    ]
    output.reporter.table(
        "Plan (nothing was encoded or fitted)", ["side", "path", "rows", "units"], rows
    )
    return {"plan": plans}


@cli.command()
@_SET
@_common
def demo(settings: Sequence[str], output: _Output) -> dict[str, Any]:
    """Run the packaged world end to end and compare the methods on held-out pairs."""
    from pipeline.cluster.demo import demo as run_demo
    from pipeline.cluster.demo import demo_config
    from pipeline.cluster.session import ray_session

    config = demo_config(tuple(settings))
    with ray_session(config, verbose=output.verbose):
        summary = run_demo(config, output.reporter)
    _show_flows(output, summary)
    _show_methods(output, summary["evaluation"])
    click.echo(f"dataset: {summary['dataset']}")
    return summary


@cli.command()
@_CONFIG
@_SET
@_DRY_RUN
@_common
def run(config: str, settings: Sequence[str], dry_run: bool, output: _Output) -> dict[str, Any]:
    """Encode, fit and synthesize: the whole way by one CONFIG."""
    from pipeline.config import load_config

    loaded = load_config(config, settings)
    if dry_run:
        sides = ("text",) if loaded.aligner.path else ("text", "image")
        return _show_plan(loaded, output, *sides)
    from pipeline.cluster.run import run as run_all
    from pipeline.cluster.session import ray_session

    with ray_session(loaded, verbose=output.verbose):
        summary = run_all(loaded, output.reporter)
    _show_flows(output, summary)
    click.echo(f"dataset: {summary['dataset']}")
    return summary


@cli.command()
@_CONFIG
@_SET
@_DRY_RUN
@_common
def encode(config: str, settings: Sequence[str], dry_run: bool, output: _Output) -> dict[str, Any]:
    """Encode captions and images to datasets of embeddings."""
    from pipeline.config import load_config

    loaded = load_config(config, settings)
    if dry_run:
        named = [s for s in ("text", "image") if getattr(loaded, s).path is not None]
        return _show_plan(loaded, output, *named)
    from pipeline.cluster.encode import encode as run_encode
    from pipeline.cluster.session import ray_session

    with ray_session(loaded, verbose=output.verbose):
        reports = run_encode(loaded, output.reporter)
    summary = {"flows": [report.to_mapping() for report in reports]}
    _show_flows(output, summary)
    return summary


@cli.command()
@_CONFIG
@_SET
@_DRY_RUN
@_common
def fit(config: str, settings: Sequence[str], dry_run: bool, output: _Output) -> dict[str, Any]:
    """Fit the aligner on both sides' embeddings."""
    from pipeline.config import load_config

    loaded = load_config(config, settings)
    if dry_run:
        return _show_plan(loaded, output, "text", "image")
    from pipeline.cluster.fit import fit as run_fit
    from pipeline.cluster.session import ray_session

    with ray_session(loaded, verbose=output.verbose):
        report = run_fit(loaded, output.reporter).to_mapping()
    rows = [[name, str(value)] for name, value in report.items() if value is not None]
    output.reporter.table("Aligner", ["", "value"], rows)
    return report


@cli.command()
@_CONFIG
@_SET
@_DRY_RUN
@_common
def synthesize(
    config: str, settings: Sequence[str], dry_run: bool, output: _Output
) -> dict[str, Any]:
    """Write the dataset of substitutes with an existing aligner."""
    from pipeline.config import load_config

    loaded = load_config(config, settings)
    if dry_run:
        return _show_plan(loaded, output, "text")
    from pipeline.cluster.session import ray_session
    from pipeline.cluster.synthesize import synthesize as run_synthesize

    with ray_session(loaded, verbose=output.verbose):
        report = run_synthesize(loaded, output.reporter)
    summary = {"flows": [report.to_mapping()], "dataset": report.to_mapping()["path"]}
    _show_flows(output, summary)
    click.echo(f"dataset: {summary['dataset']}")
    return summary


# -- looking at results ----------------------------------------------------------------------------


@cli.command()
@click.argument("dataset")
@_common
def verify(dataset: str, output: _Output) -> dict[str, Any]:
    """Check every shard of DATASET against its manifest; exit 1 names what is wrong."""
    from pipeline.storage.verification import verify as run_verify

    with output.reporter.counted("verifying") as show:
        report = run_verify(dataset, progress=show)
    result = {
        "version": report.version,
        "shards": report.shards,
        "rows": report.rows,
        "problems": [{"path": problem.path, "what": problem.what} for problem in report.problems],
    }
    for problem in report.problems:
        click.echo(f"{problem.path}: {problem.what}", err=True)
    if report.problems:
        if output.as_json:
            click.echo(json.dumps(result))
        click.echo(f"error: {dataset}: {len(report.problems)} problems found", err=True)
        sys.exit(1)
    click.echo(
        f"{dataset}: version {report.version}, {report.shards} shards, {report.rows} rows: OK"
    )
    return result


@cli.group()
def evaluate() -> None:
    """Measure alignment methods."""


def _show_methods(output: _Output, metrics: dict[str, Any]) -> None:
    from pipeline.report.methods import TABLE_METRICS, table_rows

    title = f"Methods on {metrics['n']:,} held-out pairs"
    output.reporter.table(title, ["method", *TABLE_METRICS.values()], table_rows(metrics))


@evaluate.command()
@click.argument("pairs", type=click.Path(dir_okay=False))
@click.option("--split", default=0.5, show_default=True, help="Share of the pairs to fit on.")
@click.option("--seed", default=0, show_default=True, help="Seed of the split and of the fits.")
@click.option(
    "--methods",
    default="identity,centroid,realign,anisoalign-init,anisoalign",
    show_default=True,
    help="Methods to compare, separated by commas.",
)
@click.option(
    "--out", type=click.Path(file_okay=False), help="Folder for metrics.json and split.json."
)
@click.option(
    "--config", type=click.Path(dir_okay=False), help="Take the `align` section from this file."
)
@_SET
@_common
def geometry(
    pairs: str,
    split: float,
    seed: int,
    methods: str,
    out: str | None,
    config: str | None,
    settings: Sequence[str],
    output: _Output,
) -> dict[str, Any]:
    """Compare methods on PAIRS, an .npz with arrays `image` and `text`.

    Methods are fitted on one part, without its pairs, and measured on the other.
    """
    from pipeline.config import apply_settings, load_config, parse_config

    loaded = load_config(config, settings) if config else parse_config(apply_settings({}, settings))
    names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    if not names:
        raise click.UsageError("--methods names no method")
    from pipeline.evaluation.comparison import compare, fit_methods
    from pipeline.evaluation.pairs import read_pairs, split_pairs, split_rows

    paired = read_pairs(pairs)
    rows = split_rows(paired.image.shape[0], split, seed)
    fitting, held_out = split_pairs(paired, rows)
    with output.reporter.training() as progress:
        aligners = fit_methods(names, fitting, loaded.align, seed, progress)
    metrics = compare(aligners, held_out, seed)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        (folder / "split.json").write_text(json.dumps(rows.to_mapping()), encoding="utf-8")
    _show_methods(output, metrics)
    return metrics


# -- configuration ---------------------------------------------------------------------------------


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command("show")
@_CONFIG
@_SET
@_common
def config_show(config: str, settings: Sequence[str], output: _Output) -> dict[str, Any]:
    """Print CONFIG with every default filled in."""
    import yaml

    from pipeline.config import load_config

    values = load_config(config, settings).to_mapping()
    if not output.as_json:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)
    return values


@config.command("validate")
@_CONFIG
@_SET
@_common
def config_validate(config: str, settings: Sequence[str], output: _Output) -> dict[str, Any]:
    """Check CONFIG; exit 2 says which key is wrong."""
    from pipeline.config import load_config

    fingerprint = load_config(config, settings).fingerprint()
    if not output.quiet:
        click.echo(f"{config}: OK")
    return {"valid": True, "fingerprint": fingerprint}


@config.command("schema")
@_common
def config_schema(output: _Output) -> dict[str, Any]:
    """Print the JSON Schema of the configuration."""
    from pipeline.config import RunConfig

    schema = RunConfig.model_json_schema()
    if not output.as_json:
        click.echo(json.dumps(schema, indent=2))
    return schema


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of `anisoalign` and of the jobs."""
    cli.main(args=list(arguments) if arguments is not None else None, prog_name="anisoalign")


if __name__ == "__main__":
    main()
