"""The forecasts of docs/scaling.md: the commands on the page give the figures on the page."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.report.amounts import duration, gibibytes
from tests.cluster.samples import invoke
from tests.documents import ROOT, shell_lines, text_of

PAGE = "docs/scaling.md"
TEXT = text_of(PAGE)
COMMANDS = [shlex.split(line)[1:] for line in shell_lines(PAGE) if "--calibration" in line]


def forecast(command: list[str], cpus: int) -> dict[str, Any]:
    """Return what a command of the page says, with another number of CPUs."""
    place = command.index("--cpus") + 1
    given = [str(ROOT / word) if word.startswith("docs/cal") else word for word in command]
    given[place] = str(cpus)
    given[1] = str(ROOT / given[1])
    result = invoke(*given, "--json", "-q")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def row_of(found: dict[str, Any]) -> str:
    """Return the row of the page's table that a forecast makes."""
    bound = found["bottleneck"]
    share = round(100 * bound["seconds"] / found["seconds"])
    cpus = f"{found['cpus']:,}"
    return (
        f"| {cpus} | {duration(found['seconds'])} | {bound['title']}, {share} %: "
        f"{bound['bound_by']} | {gibibytes(found['storage_bytes']['total'])} | "
        f"{gibibytes(found['memory_bytes']['worker'])} | "
        f"{gibibytes(found['memory_bytes']['driver'])} |"
    )


def test_the_page_has_a_command_for_each_calibration():
    stored = {f"docs/calibrations/{path.name}" for path in (ROOT / "docs/calibrations").iterdir()}
    assert {word for command in COMMANDS for word in command if word.startswith("docs/")} == stored
    assert all("1000000000" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one[-1] if one else "")
def test_the_figures_are_what_the_command_says(command: list[str]):
    (calibration,) = [word for word in command if word.startswith("docs/calibrations/")]
    section = TEXT.split("```bash")[1 + COMMANDS.index(command)].partition("\n## ")[0]
    told = re.findall(r"^\| [\d,]+ \|.*\|$", section, re.MULTILINE)
    assert len(told) >= 4
    for row in told:
        cpus = int(row.split("|")[1].replace(",", ""))
        assert row == row_of(forecast(command, cpus))
    disturbed = json.loads((ROOT / calibration).read_text())["disturbed"]
    about = " ".join(section.partition(f"`{calibration}` is what")[2].split())
    assert f"other work took {100 * disturbed:.0f} % of the processors" in about


def test_what_is_counted_by_hand():
    days, hours = (float(one) for one in re.findall(r"(\d+) (?:days on two|hours\. To)", TEXT))
    (rate,) = re.findall(r"encodes (\d+) captions", TEXT)
    assert f"| {rate} captions/s |" in text_of("docs/benchmarks.md")
    assert round(1e9 / int(rate) / 86_400) == days
    assert round(1e9 / int(rate) / 32 / 3600) == hours
    (units,) = re.findall(r"([\d,]+) units", TEXT)
    assert int(units.replace(",", "")) == -(-(10**9) // RunConfig().units.rows_per_shard)
