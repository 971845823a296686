"""The commands that measure: `bench NAME`."""

from __future__ import annotations

import click

from pipeline.cli.bench.compute import encode_image, encode_text, statistics, transform
from pipeline.cli.bench.runs import fit, memory, plan, scaling, startup, synthesize
from pipeline.cli.bench.storage import exports, faults, readers


@click.group()
def bench() -> None:
    """Measure the pipeline; each ends with one JSON object under --json."""


for _command in (
    encode_text,
    encode_image,
    statistics,
    fit,
    transform,
    synthesize,
    scaling,
    memory,
    startup,
    plan,
    readers,
    exports,
    faults,
):
    bench.add_command(_command)
