"""The report of the downstream evaluation: exact, whole, repeatable, safe against names."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.downstream.summary import summarise_trials
from pipeline.report.downstream import RESULTS, write_downstream_report
from pipeline.report.downstream_tables import TASK_LABELS, downstream_rows
from pipeline.report.figures import FIGURE_NAMES
from pipeline.report.figures.downstream import draw_downstream
from tests.report.test_page import HOSTILE, Page

METHODS = ("identity", "c3", "unicorn", "realign", "anisoalign", "anisoalign-init")
TASKS = tuple(TASK_LABELS)
REGIMES = ("text-only", "real-instructions", "double-text")
FACTS = {
    "data": "the packaged world",
    "note": "All is made up.",
    "captions": 8000,
    "images": 7000,
    "real_images": 50,
    "test_images": 2000,
    "parameters": 1234567,
    "decoder": "llama",
    "seconds": 12.5,
}


def sample_trials(seeds: int = 3, methods: tuple[str, ...] = METHODS) -> list[dict[str, Any]]:
    generator = np.random.default_rng(2)

    def marks(level: float) -> dict[str, float]:
        return {task: float(level + 0.02 * generator.random()) for task in TASKS}

    trials = []
    for seed in range(seeds):
        for place, name in enumerate(methods):
            regimes = {regime: marks(0.4 + 0.05 * place) for regime in REGIMES}
            trials.append({"method": name, "seed": seed, "marks": regimes})
        trials.append({"method": "blind", "seed": seed, "marks": {"blind": marks(0.2)}})
        trials.append({"method": "real-images", "seed": seed, "marks": {"real-images": marks(0.9)}})
    return trials


def results(seeds: int = 3, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    return summarise_trials(sample_trials(seeds, methods), FACTS)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_downstream_report(tmp_path_factory.mktemp("downstream"), results())


def cells(page: Page) -> list[dict[str, str]]:
    return [
        {key: value or "" for key, value in cell.items()}
        for cell in page.of("td")
        if "data-task" in cell
    ]


def test_cells_hold_the_exact_marks(report: Path):
    marks: Mapping[str, Any] = results()["marks"]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for cell in cells(Page(report)):
        values = found.setdefault(cell["data-regime"], {}).setdefault(cell["data-method"], {})
        values[cell["data-task"]] = float(cell["data-value"])
    assert found == marks
    assert list(found) == list(REGIMES)
    assert set(found["double-text"]) == {*METHODS, "blind", "real-images"}


def test_cells_show_marks_with_intervals_and_shares(report: Path):
    made, text = results(), report.read_text(encoding="utf-8")
    for regime, methods in made["marks"].items():
        table = text.split(f'id="downstream-{regime}"')[1].split("</table>")[0]
        for name, values in methods.items():
            row = next(one for one in table.split("<tr") if f'data-method="{name}"' in one)
            low, high = made["intervals"][regime][name]["average"]
            assert f"{values['average']:.3f}<small>{low:.3f}–{high:.3f}</small>" in row
            share = made["closed"][regime].get(name)
            shown = f"{share['share']:.0%}" if share else ""
            assert f"<td>{shown}</td>" in row
            assert (name in ("blind", "real-images")) == ('class="control"' in row)
    assert made["closed"]["text-only"]["anisoalign"]["share"] > 0.3


def test_claims_and_facts_are_told(report: Path):
    made, text = results(), report.read_text(encoding="utf-8")
    claims = text.split('id="claims"')[1].split("</table>")[0]
    assert claims.count("<tr>") == len(made["claims"]) + 1 > 10
    for claim in made["claims"]:
        assert claim["text"].replace("<", "&lt;") in claims
        assert f"{claim['difference']:+.4f}" in claims
        assert "{:+.4f} to {:+.4f}".format(*claim["interval"]) in claims
    facts = text.split('id="facts"')[1].split("</p>")[0]
    for said in ("the packaged world", "8,000", "2,000", "3 seeds from 0 on", "1,234,567", "llama"):
        assert said in facts


@pytest.mark.parametrize(
    ("holds", "said"),
    [("yes", "holds"), ("no", "does not hold"), ("open", "open: within the noise")],
)
def test_every_outcome_of_a_claim_is_told(tmp_path: Path, holds: str, said: str):
    made = results()
    made["claims"] = [{**made["claims"][0], "holds": holds}]
    text = write_downstream_report(tmp_path, made).read_text(encoding="utf-8")
    assert f"<td>{said}</td>" in text.split('id="claims"')[1]


def test_every_task_is_explained_as_it_was_asked(report: Path):
    text = report.read_text(encoding="utf-8")
    heads = re.findall(r'<th scope="col">([^<]+)</th>', text.split("</thead>")[0])
    assert heads[1:] == [label for label, _ in TASK_LABELS.values()]
    for label, meaning in TASK_LABELS.values():
        assert f"<dt>{label}</dt>" in text
        assert meaning.split(",")[0] in text


def test_the_figure_stands_in_the_page_and_as_files(report: Path):
    assert [one["id"] for one in Page(report).of("figure")] == ["downstream"]
    assert "downstream" in FIGURE_NAMES
    figures = report.parent / "figures"
    assert {path.name for path in figures.iterdir()} == {"downstream.png", "downstream.svg"}
    with Image.open(figures / "downstream.png") as image:
        assert len(image.convert("L").getcolors() or range(300)) > 5  # not blank
    ElementTree.fromstring((figures / "downstream.svg").read_text(encoding="utf-8"))


def test_the_figure_has_a_point_for_each_method_between_both_lines():
    made = results()
    axes = draw_downstream(made).figure.axes
    assert len(axes) == 3
    for panel, regime in zip(axes, REGIMES, strict=True):
        marks = made["marks"][regime]
        points = [line for line in panel.lines if line.get_marker() not in ("", "None")]
        drawn = {float(line.get_xdata()[0]) for line in points}
        assert drawn == {marks[name]["average"] for name in METHODS}
        upright = {
            float(line.get_xdata()[0]): line.get_linestyle()
            for line in panel.lines
            if line.get_linestyle() in (":", "--")
        }
        assert upright == {
            marks["blind"]["average"]: ":",
            marks["real-images"]["average"]: "--",
        }
        bars = [
            list(line.get_xdata())
            for line in panel.lines
            if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"
        ]
        assert bars == [made["intervals"][regime][name]["average"] for name in METHODS]
        assert len(panel.get_yticklabels()) == len(METHODS)


def test_results_are_written_as_they_are(report: Path):
    assert json.loads((report.parent / RESULTS).read_bytes()) == json.loads(json.dumps(results()))


def test_two_writes_give_the_same_bytes(report: Path, tmp_path: Path):
    write_downstream_report(tmp_path, results())
    files = [path for path in sorted(report.parent.rglob("*")) if path.is_file()]
    assert len(files) == 4
    for path in files:
        again = tmp_path / path.relative_to(report.parent)
        assert again.read_bytes() == path.read_bytes(), path.name


def test_foreign_names_stay_text(tmp_path: Path):
    made = results(methods=(*METHODS, HOSTILE))
    for regime in REGIMES:
        made["marks"][regime]["c3"][HOSTILE] = 0.25
        made["intervals"][regime]["c3"][HOSTILE] = None
    made["claims"][0]["text"] = HOSTILE
    made["facts"]["data"] = HOSTILE
    made["facts"]["decoder"] = HOSTILE
    page = Page(write_downstream_report(tmp_path, made))
    assert not page.of("script")
    assert page.text.count("{{ 7 * 7 }}") > 5
    assert "49" not in re.sub(r"\d*\.\d+|<svg.*?</svg>", "", page.text, flags=re.DOTALL)
    found = cells(page)
    assert {cell["data-method"] for cell in found} == {*METHODS, HOSTILE, "blind", "real-images"}
    told = [cell for cell in found if cell["data-task"] == HOSTILE]
    assert {cell["data-value"] for cell in told if cell["data-method"] == "c3"} == {"0.25"}
    assert {cell["data-value"] for cell in told if cell["data-method"] != "c3"} == {""}


def test_one_seed_has_neither_intervals_nor_claims(tmp_path: Path):
    page = Page(write_downstream_report(tmp_path, results(seeds=1)))
    tables = page.text.split("</figure>")[-1]
    assert "<small>" not in tables
    assert 'id="claims"' not in page.text
    assert "; one seed;" in page.text
    assert len(cells(page)) == 3 * 8 * len(TASKS)
    assert "nan" not in tables


def test_a_task_that_was_not_asked_is_left_out(tmp_path: Path):
    trials = sample_trials()
    for one in trials:
        for marks in one["marks"].values():
            del marks["count"]
    page = Page(write_downstream_report(tmp_path, summarise_trials(trials, FACTS)))
    assert "count" not in {cell["data-task"] for cell in cells(page)}
    assert "<dt>count</dt>" not in page.text


def test_the_page_refers_to_nothing_outside_its_folder(report: Path):
    page = Page(report)
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key)
            if target and not target.startswith("#"):
                assert (report.parent / target).is_file()


def test_rows_for_a_terminal():
    made = results()
    rows = downstream_rows(made)
    assert len(rows) == 3 * 8
    by_name = {(regime, name): rest for regime, name, *rest in rows}
    low, high = made["intervals"]["text-only"]["anisoalign"]["average"]
    average = made["marks"]["text-only"]["anisoalign"]["average"]
    share = made["closed"]["text-only"]["anisoalign"]["share"]
    assert [f"{average:.3f}", f"{low:.3f}-{high:.3f}", f"{share:.0%}"] in by_name.values()
    assert by_name["text-only", "Real images"][2] == ""
    assert all(row[3] == "" for row in downstream_rows(results(seeds=1)))


def test_no_share_is_minus_zero():
    made = results()
    for share, said in ((-0.004, "0%"), (-0.006, "-1%"), (0.996, "100%")):
        made["closed"]["text-only"]["c3"]["share"] = share
        assert said in {row[4] for row in downstream_rows(made)}
    made["closed"]["text-only"]["c3"]["share"] = -0.004
    assert "-0%" not in {row[4] for row in downstream_rows(made)}
