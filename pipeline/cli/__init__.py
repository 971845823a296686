"""The command line. Heavy modules load inside the commands, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pipeline import __version__
from pipeline.cli.bench import bench
from pipeline.cli.configuration import config
from pipeline.cli.evaluate import evaluate
from pipeline.cli.export import export
from pipeline.cli.nightly import nightly
from pipeline.cli.plan import plan
from pipeline.cli.results import verify
from pipeline.cli.runs import demo, encode, fit, run, synthesize
from pipeline.cli.versions import gc, rollback, versions


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="anisoalign")
def cli() -> None:
    """Turn text corpora into substitute image embeddings for multimodal LLM training."""


for _command in (
    demo,
    run,
    encode,
    fit,
    synthesize,
    nightly,
    plan,
    verify,
    versions,
    rollback,
    gc,
    export,
    evaluate,
    bench,
    config,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of `anisoalign` and of the jobs."""
    cli.main(args=list(arguments) if arguments is not None else None, prog_name="anisoalign")
