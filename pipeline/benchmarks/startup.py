"""How long a user waits: for help, for a checked configuration, for the first unit of a run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.benchmarks.commands import CommandError
from pipeline.benchmarks.machine import machine_facts
from pipeline.demo.corpora import write_demo_corpora

REPEATS = 5
_FIRST_UNIT_REPEATS = 3
_CAPTIONS = 64


@dataclass(frozen=True)
class StartupReport:
    """Seconds of each, one for each repetition; the baseline is Python's own start."""

    python: tuple[float, ...]
    help: tuple[float, ...]
    validate: tuple[float, ...]
    first_unit: tuple[float, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is that of `--help`."""
        baseline = statistics.median(self.python)
        parts = {
            name: {
                "value": statistics.median(seconds),
                "baseline": baseline,
                "ratio": statistics.median(seconds) / baseline,
                "spread": [min(seconds), max(seconds)],
            }
            for name, seconds in (
                ("anisoalign --help", self.help),
                ("anisoalign config validate", self.validate),
                ("first unit of anisoalign encode written", self.first_unit),
            )
        }
        return {
            "name": "startup",
            "unit": "s",
            **parts["anisoalign --help"],
            "machine": machine_facts(),
            "parts": parts,
        }


def run_startup(progress: Callable[[int, int], None] | None = None) -> StartupReport:
    """Start Python, the command line, and runs over a few captions of the demo world."""
    total = REPEATS + _FIRST_UNIT_REPEATS
    python, help_, validate, first = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="anisoalign-startup-") as name:
        folder = Path(name)
        config = _write_config(folder)
        for repetition in range(REPEATS):
            python.append(_seconds(["-c", "pass"]))
            help_.append(_seconds(["-m", "pipeline.cli", "--help"]))
            validate.append(_seconds(["-m", "pipeline.cli", "config", "validate", str(config)]))
            if progress is not None:
                progress(repetition + 1, total)
        for repetition in range(_FIRST_UNIT_REPEATS):
            first.append(_until_first_unit(config, folder / f"run-{repetition}"))
            if progress is not None:
                progress(REPEATS + repetition + 1, total)
    return StartupReport(tuple(python), tuple(help_), tuple(validate), tuple(first))


def _write_config(folder: Path) -> Path:
    corpora = write_demo_corpora(folder / "corpora", captions=_CAPTIONS, images=1, pairs=1)
    values = {"text": {"path": str(corpora.captions)}, "encoder": {"model": "demo"}}
    path = folder / "startup.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def _until_first_unit(config: Path, output: Path) -> float:
    """Return seconds from the start of an encode command until its first unit is written."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline.cli", "encode", str(config), "--log-json"),
            *("--set", f"output.path={output}", "--set", "ray.address=local"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = None
    for line in process.stderr:
        if first is None and json.loads(line).get("event") == "unit_written":
            first = time.perf_counter() - start
    if process.wait() != 0 or first is None:
        raise CommandError(f"encode failed with {process.returncode}")
    return first
