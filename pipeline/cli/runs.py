"""The commands that run flows on Ray: demo, run, encode, fit, synthesize."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from pipeline.cli.common import Output, common_options, config_argument, set_option
from pipeline.report.events import printable

_Flow = Callable[[Any, Any], dict[str, Any]]


@click.command()
@set_option
@click.option(
    "--downstream",
    is_flag=True,
    help="Train small multimodal LMs on the substitutes too and ask them about real images: a part "
    "of the report, ten minutes more.",
)
@common_options
def demo(settings: Sequence[str], downstream: bool, output: Output) -> dict[str, Any]:
    """Run the packaged world end to end, compare the methods and write a report."""
    from pipeline.cluster.demo import demo as run_demo
    from pipeline.cluster.demo import demo_config
    from pipeline.cluster.downstream import QUICK_SETTINGS
    from pipeline.cluster.lifecycle import run_flow

    config = demo_config((*(QUICK_SETTINGS if downstream else ()), *settings))
    flow = functools.partial(run_demo, downstream=downstream)
    summary = run_flow(config, "demo", flow, output.reporter, verbose=output.shows_ray)
    output.show_flows(summary)
    output.show_methods(summary["evaluation"])
    click.echo(f"dataset: {printable(summary['dataset'])}")
    click.echo(f"report: {printable(summary['report'])}")
    return summary


def flow_command(sides: Callable[[Any], Sequence[str]]) -> Callable[[Any], click.Command]:
    """Make a command on CONFIG of a function that loads its flow and returns it.

    `sides` names the sides that a dry run of a configuration plans. The flow takes the
    configuration and a reporter and returns what the summary is to hold: `flows`, of which a table
    is shown, and `dataset`, whose path is.
    """

    def decorate(load_flow: Callable[[], _Flow]) -> click.Command:
        @click.command(load_flow.__name__)
        @config_argument
        @set_option
        @click.option(
            "--dry-run",
            is_flag=True,
            help="Plan the units and say what would be done, without Ray.",
        )
        @common_options
        @functools.wraps(load_flow)
        def command(
            config: str, settings: Sequence[str], dry_run: bool, output: Output
        ) -> dict[str, Any]:
            from pipeline.config import load_config

            loaded = load_config(config, settings)
            if dry_run:
                return _show_plan(loaded, output, sides(loaded))
            from pipeline.cluster.lifecycle import RUN_FIELDS, run_flow

            summary = run_flow(
                loaded,
                load_flow.__name__,
                lambda *given: load_flow()(*given),  # imported while Ray's workers import too
                output.reporter,
                verbose=output.shows_ray,
            )
            if "flows" in summary:
                output.show_flows(summary)
            else:
                names = loaded.names
                called = {"image_rows": f"{names.target}_rows", "text_rows": f"{names.source}_rows"}
                rows = [
                    [called.get(name, name), str(value)]
                    for name, value in summary.items()
                    if value is not None and (name not in RUN_FIELDS or name == "seconds")
                ]
                output.reporter.table("Aligner", ["", "value"], rows)
            if "dataset" in summary:
                click.echo(f"dataset: {printable(summary['dataset'])}")
            return summary

        return command

    return decorate


@flow_command(lambda config: ("text",) if config.aligner.path else ("text", "image"))
def run() -> _Flow:
    """Encode, fit and synthesize: the whole way by one CONFIG."""
    from pipeline.cluster.run import run

    return run


@flow_command(
    lambda config: [side for side in ("text", "image") if getattr(config, side).path is not None]
)
def encode() -> _Flow:
    """Encode captions and images to datasets of embeddings."""
    from pipeline.cluster.encode import encode

    return lambda *given: {"flows": [report.to_mapping() for report in encode(*given)]}


@flow_command(lambda config: ("text", "image"))
def fit() -> _Flow:
    """Fit the aligner on both sides' embeddings."""
    from pipeline.cluster.fit import fit

    return lambda *given: fit(*given).to_mapping()


@flow_command(lambda config: ("text",))
def synthesize() -> _Flow:
    """Write the dataset of substitutes with an existing aligner."""
    from pipeline.cluster.synthesize import synthesize

    def flow(config: Any, reporter: Any) -> dict[str, Any]:
        report = synthesize(config, reporter).to_mapping()
        return {"flows": [report], "dataset": report["path"]}

    return flow


_PLANNED = ("rows", "units", "new_units", "vanished_units")
"""Columns of the plan; new and vanished against the version that is current."""


def _show_plan(config: Any, output: Output, sides: Sequence[Any]) -> dict[str, Any]:
    """Plan the named sides without Ray and print a table."""
    from pipeline.cluster.corpora import changed_units, plan_corpus
    from pipeline.cluster.sources import source_corpus

    plans = {}
    for side in sides:
        corpus = source_corpus(config, side, output.reporter)
        planned = plan_corpus(config, corpus, corpus.name, output.reporter, remember=False)
        plans[side] = {
            "path": corpus.shown,
            "rows": planned.rows,
            "units": len(planned.units),
            "duplicate_units": len(planned.duplicate_units),
            "skipped_files": len(planned.skipped_files),
            "encode": not corpus.holds_embeddings,
            **changed_units(config, corpus, planned),
        }
    rows = [
        [config.names.of(side), values["path"], *(f"{values[name]:,}" for name in _PLANNED)]
        for side, values in plans.items()
    ]
    columns = ["side", "path", *(name.removesuffix("_units") for name in _PLANNED)]
    output.reporter.table("Plan (nothing was encoded or fitted)", columns, rows)
    return {"plan": plans}
