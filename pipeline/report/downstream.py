"""The report of the downstream evaluation: its page and its results as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.names import DEFAULT_NAMES
from pipeline.report.downstream_tables import DOWNSTREAM_TITLE, page_values
from pipeline.report.figures.downstream import draw_downstream
from pipeline.report.figures.drawing import look
from pipeline.report.page import render, write_figures, write_page
from pipeline.storage.locations import write_bytes

RESULTS = "downstream.json"


def write_downstream_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write downstream.json, index.html and figures/downstream.* ; returns the page's path.

    `results` are those of a summary of trials. The same results give the same bytes.
    """
    data = json.dumps(results, indent=1, sort_keys=True, allow_nan=False).encode()
    write_bytes(str(folder / RESULTS), data)
    with look():
        drawings = [draw_downstream(results)]
    html = render(
        "downstream.html",
        DEFAULT_NAMES,
        title=DOWNSTREAM_TITLE,
        sections=write_figures(folder, {"In one picture": drawings}),
        **page_values(results),
    )
    return write_page(folder, html)
