"""The command that writes a dataset in the files of a trainer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import Output, common_options
from pipeline.export import CONVERSATIONAL_FORMATS, FORMATS


def _export_settings(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    for setting in value:
        key = setting.partition("=")[0].strip()
        if key != "seed" and not key.startswith("conversations."):
            raise click.BadParameter(
                f"{key} says nothing here; only seed and keys of the conversations section do, "
                "such as conversations.column"
            )
    return value


@click.command()
@click.argument("dataset")
@click.argument("target")
@click.option(
    "--format",
    "layout",
    type=click.Choice(FORMATS),
    required=True,
    help="Whose files: Hugging Face datasets, WebDataset, ReVision and Bunny, LLaVA, MosaicML "
    "Streaming, or the arrays of clip-retrieval.",
)
@click.option("--version", help="Export this version, not the current one.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    help="Take the `conversations` section and the seed from this file.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_export_settings,
    metavar="KEY=VALUE",
    help="Set a key of the `conversations` section, or the seed; may be repeated.",
)
@click.option("--name", help="What the card calls the dataset.")
@click.option("--license", "licence", help="What the card says of the licence.")
@click.option(
    "--metrics",
    type=click.Path(dir_okay=False),
    help="Show these in the card: metrics.json of `evaluate geometry --out`.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that write parts; each holds one shard in memory.",
)
@common_options
def export(
    dataset: str,
    target: str,
    layout: str,
    version: str | None,
    config: str | None,
    settings: Sequence[str],
    name: str | None,
    licence: str | None,
    metrics: str | None,
    workers: int,
    output: Output,
) -> dict[str, Any]:
    """Write a version of DATASET to the folder or URL TARGET in the files that a trainer reads.

    An export that was interrupted goes on where it stopped when it is started again.
    """
    from pipeline.config import apply_settings, load_config, parse_config

    if settings and layout not in CONVERSATIONAL_FORMATS:
        raise click.UsageError(f"--set says nothing with --format {layout}: it has the columns")
    loaded = load_config(config, settings) if config else parse_config(apply_settings({}, settings))
    from pipeline.export.card import CardFacts
    from pipeline.export.exporting import LAYOUTS
    from pipeline.export.exporting import export as run_export
    from pipeline.storage.receipts import printable

    try:
        facts = CardFacts(name=name, license=licence, metrics=_metrics(metrics))
    except ValueError as error:
        raise ValueError(f"{metrics}: {error}; give metrics.json of an evaluation") from None
    with output.reporter.counted("exporting") as show:
        report = run_export(
            dataset,
            target,
            LAYOUTS[layout](settings=loaded.conversations, seed=loaded.seed),
            version=version,
            facts=facts,
            workers=workers,
            run_id=f"export-{secrets.token_hex(4)}",
            progress=show,
        )
    whole = ", all there already by their sizes (sha256sum -c checksums.sha256 looks closer)"
    there = whole if report.reused == report.parts else ""
    if 0 < report.reused < report.parts:
        there = f", {report.reused} of them there already"
    click.echo(
        f"{printable(report.target)}: version {report.version} as {report.format}, "
        f"{report.rows:,} rows in {report.parts:,} parts ({report.bytes / 1e6:,.1f} MB){there}"
    )
    return report.to_mapping()


def _metrics(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(values, dict) or "methods" not in values:
        raise ValueError("it has no methods")
    return values
