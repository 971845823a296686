"""Benchmarks of what computes: `bench encode-text | statistics | transform`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import Output, common_options

_SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the rows.")


@click.command("encode-text")
@click.argument("captions", required=False)
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--pretrained", help="Weights; random ones by default.")
@click.option("--rows", type=click.IntRange(min=8), default=2048, show_default=True)
@common_options
def encode_text(
    captions: str | None, model: str, pretrained: str | None, rows: int, output: Output
) -> dict[str, Any]:
    """Encode CAPTIONS (a corpus; the demo's by default) and compare with open_clip's plain loop."""
    from pipeline.benchmarks.encode_text import read_captions, run_encode_text, weights

    with (
        tempfile.TemporaryDirectory(prefix="anisoalign-captions-") as folder,
        output.reporter.counted("repetitions") as show,
    ):
        texts = read_captions(captions, rows, Path(folder))
        report = run_encode_text(
            texts, model=model, pretrained=weights(model, pretrained), progress=show
        )
    result = report.to_mapping()
    output.reporter.table(
        f"Encoding {len(texts):,} captions with {model}; largest difference {report.error:.1e}",
        ["", "captions/s"],
        [
            ["ours", f"{result['value']:,.1f}"],
            ["plain loop", f"{result['baseline']:,.1f}"],
            ["ratio", f"{result['ratio']:.2f}"],
        ],
    )
    return result


@click.command("encode-image")
@click.option("--model", default="ViT-B-32", show_default=True)
@click.option("--pretrained", help="Weights; random ones by default.")
@click.option("--rows", type=click.IntRange(min=1), default=256, show_default=True)
@_SEED
@common_options
def encode_image(
    model: str, pretrained: str | None, rows: int, seed: int, output: Output
) -> dict[str, Any]:
    """Encode JPEG files of 640 x 480; compare with a bare loop that decodes one batch ahead."""
    from pipeline.benchmarks.encode_image import run_encode_image
    from pipeline.benchmarks.encode_text import weights

    with (
        tempfile.TemporaryDirectory(prefix="anisoalign-images-") as folder,
        output.reporter.counted("repetitions") as show,
    ):
        report = run_encode_image(
            Path(folder),
            model=model,
            pretrained=weights(model, pretrained),
            rows=rows,
            seed=seed,
            progress=show,
        )
    result = report.to_mapping()
    output.reporter.table(
        f"Encoding {rows:,} images with {model}; largest difference {report.error:.1e}",
        ["", "images/s"],
        [
            ["ours", f"{result['value']:,.1f}"],
            ["bare loop", f"{result['baseline']:,.1f}"],
            ["ratio", f"{result['ratio']:.2f}"],
        ],
    )
    return result


@click.command()
@click.option("--rows", type=click.IntRange(min=128), default=32_768, show_default=True)
@_SEED
@common_options
def statistics(rows: int, seed: int, output: Output) -> dict[str, Any]:
    """Count moments, phases and radii; compare with the matrix products that they rest on."""
    from pipeline.benchmarks.statistics import run_statistics

    with output.reporter.counted("repetitions") as show:
        report = run_statistics(rows=rows, seed=seed, progress=show)
    result = report.to_mapping()
    _show_parts(output, f"Statistics of {rows:,} rows", "product", result)
    return result


@click.command()
@click.option("--rows", type=click.IntRange(min=1), default=32_768, show_default=True)
@click.option("--dimension", type=click.IntRange(min=4), default=512, show_default=True)
@_SEED
@common_options
def transform(rows: int, dimension: int, seed: int, output: Output) -> dict[str, Any]:
    """Correct embeddings; compare with bare matrix products, and with a copy that scales."""
    from pipeline.benchmarks.transform import run_transform

    with output.reporter.counted("repetitions") as show:
        report = run_transform(rows=rows, dimension=dimension, seed=seed, progress=show)
    result = report.to_mapping()
    title = f"Correcting {rows:,} rows of width {dimension}, rank {report.rank}"
    _show_parts(output, title, "baseline", result)
    return result


def _show_parts(output: Output, title: str, baseline: str, result: dict[str, Any]) -> None:
    """Print the parts of a result, rows a second."""
    output.reporter.table(
        title,
        ["", "rows/s", f"{baseline}, rows/s", "ratio", "least", "most"],
        [
            [
                name,
                f"{part['value']:,.0f}",
                f"{part['baseline']:,.0f}",
                f"{part['ratio']:.2f}",
                *(f"{one:,.0f}" for one in part["spread"]),
            ]
            for name, part in result["parts"].items()
        ],
    )
