"""The whole way: encode both sides, fit, synthesize, sum up."""

from __future__ import annotations

from typing import Any

from pipeline.cluster.dataset_flow import FlowReport
from pipeline.cluster.encode import encode
from pipeline.cluster.fit import FitReport, fit
from pipeline.cluster.sources import source_corpus
from pipeline.cluster.synthesize import synthesize
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.storage import locations


def run(config: RunConfig, reporter: Reporter) -> dict[str, Any]:
    """Turn a text corpus into a dataset of substitutes; returns a summary of the flows.

    With `aligner.path` set, nothing is fitted and the images are not looked at. Otherwise both
    sides are encoded and stored, so that a fit with other settings costs no encoding.

    Raises:
        ValueError: when an input cannot be used; what was written before is kept.
    """
    source_corpus(config, "text", reporter)  # a missing path should be named before any work
    reports: list[FlowReport] = []
    fitted: FitReport | None = None
    if config.aligner.path is None:
        source_corpus(config, "image", reporter)
        reports = encode(config, reporter)
        fitted = fit(config, reporter, keep_ids=True)
        reports.append(synthesize(config, reporter, stored=True))
    else:
        reports.append(synthesize(config, reporter))
    return {
        "seed": config.seed,
        "flows": [report.to_mapping() for report in reports],
        "fit": fitted.to_mapping() if fitted else None,
        "dataset": locations.redact_url(reports[-1].path),
        "rows": reports[-1].rows,
    }


def summary_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the closing table: flow, rows, rejected, units, kept, seconds, rows/s."""
    rows = []
    for flow in summary["flows"]:
        rate = flow["rows"] / flow["seconds"] if flow["seconds"] else 0.0
        rows.append(
            [
                flow["name"],
                f"{flow['rows']:,}",
                f"{flow['rejected']:,}",
                f"{flow['units']:,}",
                f"{flow['reused_units']:,}",
                f"{flow['seconds']:.1f}",
                f"{rate:,.0f}",
            ]
        )
    if summary.get("fit"):
        fit_report = summary["fit"]
        rank = f" (rank {fit_report['rank']})" if fit_report["rank"] else ""
        rows.insert(
            len(rows) - 1,
            [
                f"fitting {fit_report['method']}{rank}",
                f"{fit_report['image_rows'] + fit_report['text_rows']:,}",
                "",
                "",
                "kept" if fit_report["reused"] else "",
                f"{fit_report['seconds']:.1f}",
                "",
            ],
        )
    return rows
