"""The tables of the downstream evaluation, for pages and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.figures.downstream import REFERENCE_LABELS, REGIME_LABELS, trained_label

DOWNSTREAM_TITLE = "What a trainer learns from substitutes"

TASK_LABELS = {
    "average": ("average", "The mean over all tasks."),
    "captioning": (
        "captioning (F1)",
        "What generated captions name, against what there is to name: F1 over all test images.",
    ),
    "colour": ("colour", "“What colour is the large one?”, right answers."),
    "shape": ("shape", "“What shape is the red one?”, right answers."),
    "size": ("size", "“What size is the red one?”, right answers."),
    "relation": ("relation", "“Where is the red one from the blue one?”, right answers."),
    "count": ("count", "“How many red ones are there?”, right answers."),
    "background": ("background", "“What is the background?”, right answers."),
    "presence": (
        "presence",
        "Is a thing there, yes or no? Half of the things asked for are absent.",
    ),
    "hallucination": (
        "hallucination",
        "Absent things that the model says are there, of all absent ones; lower is better, and it "
        "is no part of the average.",
    ),
}
"""Tasks: their heading and their meaning."""


def page_values(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page's templates take: tables, claims, facts."""
    tasks = _tasks(results)
    return {
        "tasks": [
            {"name": task, "label": _label(task), "meaning": _meaning(task)} for task in tasks
        ],
        "tables": [_table(results, regime, tasks) for regime in results["marks"]],
        "claims": [_claim(one) for one in results["claims"]],
        "facts": _facts(results),
    }


def downstream_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return rows for a terminal: regime, method, average with interval, share closed."""
    rows = []
    for regime, marks in results["marks"].items():
        for name, values in marks.items():
            known = results["intervals"][regime][name]["average"]
            rows.append(
                [
                    regime,
                    trained_label(name),
                    f"{values['average']:.3f}",
                    f"{known[0]:.3f}-{known[1]:.3f}" if known else "",
                    _share(results, regime, name),
                ]
            )
    return rows


def _tasks(results: Mapping[str, Any]) -> list[str]:
    """Return the tasks that were asked, in the order of `TASK_LABELS`."""
    asked = {
        task for marks in results["marks"].values() for values in marks.values() for task in values
    }
    known = [task for task in TASK_LABELS if task in asked]
    return [*known, *sorted(asked - set(known))]


def _label(task: str) -> str:
    return TASK_LABELS[task][0] if task in TASK_LABELS else task


def _meaning(task: str) -> str:
    return TASK_LABELS[task][1] if task in TASK_LABELS else ""


def _table(results: Mapping[str, Any], regime: str, tasks: list[str]) -> dict[str, Any]:
    rows = []
    for name, values in results["marks"][regime].items():
        known = results["intervals"][regime][name]
        cells = [
            {
                "task": task,
                "value": repr(values[task]) if task in values else "",
                "text": f"{values[task]:.3f}" if task in values else "–",
                "interval": "–".join(f"{end:.3f}" for end in known[task])
                if known.get(task)
                else "",
            }
            for task in tasks
        ]
        rows.append(
            {
                "name": name,
                "label": trained_label(name),
                "reference": name in REFERENCE_LABELS,
                "cells": cells,
                "share": _share(results, regime, name),
            }
        )
    return {"regime": regime, "label": REGIME_LABELS.get(regime, regime), "rows": rows}


def _share(results: Mapping[str, Any], regime: str, name: str) -> str:
    found = results["closed"].get(regime, {}).get(name)
    return f"{round(found['share'], 2) + 0.0:.0%}" if found else ""  # no share is -0 %


_HOLDS = {"yes": "holds", "no": "does not hold", "open": "open: within the noise"}


def _claim(claim: Mapping[str, Any]) -> dict[str, str]:
    low, high = claim["interval"]
    return {
        "regime": REGIME_LABELS.get(claim["regime"], claim["regime"]),
        "text": claim["text"],
        "difference": f"{claim['difference']:+.4f}",
        "interval": f"{low:+.4f} to {high:+.4f}",
        "holds": _HOLDS[claim["holds"]],
    }


def _facts(results: Mapping[str, Any]) -> str:
    facts, seeds = results["facts"], results["seeds"]
    over = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds from {seeds[0]} on"
    told = (
        f"{facts['data']}; trained on {facts['captions']:,} captions (twice that in double-text), "
        f"or {facts['images']:,} images, of which {facts['real_images']:,} are instructed in "
        f"real-instructions; asked about {facts['test_images']:,} real images that nothing else "
        f"saw; {over}; a model of {facts['parameters']:,} parameters ({facts['decoder']})."
    )
    return f"{told} {facts['note']}".strip()
