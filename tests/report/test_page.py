"""The report as written: whole without a network, exact, repeatable, safe against its input."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.report.comparison import write_comparison
from pipeline.report.figures import FIGURE_NAMES, draw_figures
from pipeline.report.methods import CONTROLS
from pipeline.report.metrics import METRICS
from pipeline.report.page import write_report
from tests.browser import browser, resize
from tests.report.samples import sample_curves, sample_metrics

FIGURES_OF = {
    "spectra": "spectra",
    "subspace_overlap": "subspace-overlap",
    "residual_spectrum": "residual-spectrum",
    "clouds": "clouds",
    "method_spectra": "method-spectra",
    "training": "training",
    "phases": "phases",
    "target_size": "target-size",
}
ALWAYS = {"centroid-and-residual", "tradeoff", "tradeoff-close", "mixing", "semantics"}
HOSTILE = '<script>alert("1")</script>&amp; $x_{$ {{ 7 * 7 }}'


class Page(HTMLParser):
    """Collects elements with their attributes, and the text of table cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of a kind."""
        return [attributes for kind, attributes in self.elements if kind == tag]


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return sample_metrics()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, metrics, sample_curves(), "Made-up clouds")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, Any]) -> Path:
    other = sample_metrics(seed=1, intervals=False)
    del other["methods"]["c3"]
    runs = {
        "first": {"metrics": metrics, "curves": sample_curves()},
        HOSTILE: {"metrics": other, "curves": {}},
    }
    return write_comparison(runs, tmp_path_factory.mktemp("comparison"))


def drawn(path: Path) -> set[str]:
    return {found["id"] for found in Page(path).of("figure") if found["id"]}


def test_every_figure_stands_in_the_page_and_as_files(report: Path):
    expected = ALWAYS | set(FIGURES_OF.values())
    assert drawn(report) == expected
    figures = report.parent / "figures"
    assert {path.name for path in figures.iterdir()} == {
        f"{name}.{kind}" for name in expected for kind in ("png", "svg")
    }
    for path in figures.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(image.convert("L").getcolors() or range(300)) > 5  # not blank
    for path in figures.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.findall(".//{http://www.w3.org/2000/svg}text")  # letters, not outlines


@pytest.mark.parametrize("part", [*FIGURES_OF, "frontier"])
def test_a_missing_part_leaves_out_its_figure_alone(tmp_path: Path, part: str):
    curves = {key: value for key, value in sample_curves().items() if key in (part,)}
    rest = ALWAYS | ({FIGURES_OF[part]} if part in FIGURES_OF else set())
    assert drawn(write_report(tmp_path, sample_metrics(), curves, "Part")) == rest


def test_titles_hold_the_numbers_of_one_split_alone():
    several, one = sample_metrics(), {**sample_metrics(), "splits": 1}
    for metrics, spectra, residual in (
        (one, "Spectra of both modalities, C_λ = 0.941", " A_r = 12.3, d_eff = 14.7 of 64"),
        (several, "Spectra of both modalities", ""),
    ):
        titles = {
            drawing.name: drawing.title
            for drawings in draw_figures(metrics, sample_curves()).values()
            for drawing in drawings
        }
        assert set(titles) <= FIGURE_NAMES
        assert titles["spectra"] == spectra
        assert titles["residual-spectrum"] == "How isotropic is the residual?" + residual


def test_the_frontier_is_spoken_of_only_where_it_is_drawn(report: Path, tmp_path: Path):
    bare = write_report(tmp_path, sample_metrics(), {}, "Bare")
    assert "closed-form" in Page(report).text
    assert "closed-form" not in Page(bare).text


def test_without_curves_intervals_and_splits_the_page_stands(tmp_path: Path):
    metrics = sample_metrics(intervals=False)
    del metrics["splits"]
    page = Page(write_report(tmp_path, metrics, {}, "Bare"))
    assert {found["id"] for found in page.of("figure")} == ALWAYS
    assert "one split" in page.text
    assert "95 % intervals" not in page.text.split("<figure")[0]


def test_the_page_refers_to_nothing_outside_its_folder(report: Path, comparison: Path):
    for path in (report, comparison):
        page = Page(path)
        without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.text)
        assert not re.search(
            r"https?://|//\w+\.\w+/|@import|<script|<link|<img", without_namespaces
        )
        for _, attributes in page.elements:
            for key in ("src", "href", "xlink:href"):
                target = attributes.get(key)
                if target and not target.startswith("#"):
                    assert (path.parent / target).is_file()


def test_cells_hold_exact_values_and_bold_the_best_contender(report: Path, metrics: dict[str, Any]):
    cells = [cell for cell in Page(report).of("td") if "data-metric" in cell]
    assert len(cells) == len(metrics["methods"]) * len(METRICS)
    for cell in cells:
        assert cell["data-method"]
        assert cell["data-metric"]
        assert cell["data-value"]
        value = metrics["methods"][cell["data-method"]][cell["data-metric"]]
        assert float(cell["data-value"]) == value
    for metric, described in METRICS.items():
        best = (max if described.higher_is_better else min)(
            (name for name in metrics["methods"] if name not in CONTROLS),
            key=lambda name, metric=metric: metrics["methods"][name][metric],
        )
        marked = [
            cell["data-method"]
            for cell in cells
            if cell["data-metric"] == metric and cell.get("class") == "best"
        ]
        assert marked == [best]
    gap = {
        cell["data-gap"]: cell["data-value"] for cell in Page(report).of("td") if "data-gap" in cell
    }
    assert {key: float(value or "nan") for key, value in gap.items()} == metrics["gap"]


def test_what_could_not_be_measured_is_a_dash_and_never_best(tmp_path: Path):
    metrics, curves = sample_metrics(), sample_curves()
    metrics["methods"]["realign"] = dict.fromkeys(metrics["methods"]["realign"])
    metrics["intervals"]["realign"] = {metric: [None, None] for metric in METRICS}
    metrics["gap"] = dict.fromkeys(metrics["gap"])
    curves["method_spectra"]["realign"] = [None] * 64
    curves["training"]["anisoalign"]["prior"][700:] = [None] * 800
    for row in (*curves["frontier"]["oracle"], *curves["target_size"][:3]):
        row["metrics"] = dict.fromkeys(row["metrics"])
    path = write_report(tmp_path / "one", metrics, curves, "Holes")
    assert drawn(path) == ALWAYS | set(FIGURES_OF.values())
    runs = {name: {"metrics": metrics, "curves": curves} for name in ("first", "second")}
    both = write_comparison(runs, tmp_path / "both")
    for page in (Page(path), Page(both)):
        holes = [
            cell
            for cell in page.of("td")
            if cell.get("data-method") == "realign" or "data-gap" in cell
        ]
        assert len(holes) >= len(METRICS) + len(metrics["gap"])
        assert all(cell["data-value"] == "" and cell.get("class") is None for cell in holes)
        assert page.text.count('data-value="">–</td>') == len(holes)
        assert ">nan" not in page.text


def test_several_splits_say_which_one_the_curves_show(tmp_path: Path):
    said = "of the first split, seed 0."
    several, one = sample_metrics(), sample_metrics()
    one |= {"splits": 1, "interval_kind": "pairs", "resamples": 200}
    one["fitting"] = {"images": 9, "texts": 9, "separate": True}
    page = write_report(tmp_path / "several", several, sample_curves(), "x").read_text()
    captions = re.findall(r"<figcaption>(.*?) <a", page, re.DOTALL)
    assert sum(said in caption for caption in captions) == 10  # all but bars of means
    assert said in page.split('id="facts"')[1]
    assert "C<sub>λ</sub> = " not in page
    assert "Student&#39;s t over 5 splits that share pairs." in page
    alone = write_report(tmp_path / "one", one, sample_curves(), "x").read_text()
    assert said not in alone
    assert "held fixed (200 resamples)." in alone
    # Fits on the same clouds see the same gap.
    fits = {**one, "splits": 3}
    page = write_report(tmp_path / "fits", fits, sample_curves(), "x").read_text()
    captions = re.findall(r"<figcaption>(.*?) <a", page, re.DOTALL)
    assert sum("of the first fit, seed 0." in caption for caption in captions) == 7


def test_foreign_names_stay_text(tmp_path: Path):
    metrics = sample_metrics()
    metrics["methods"][HOSTILE] = metrics["methods"]["realign"]
    curves = sample_curves()
    curves["method_spectra"][HOSTILE] = curves["method_spectra"]["realign"]
    curves["training"][HOSTILE] = curves["training"]["anisoalign"]
    page = Page(write_report(tmp_path, metrics, curves, HOSTILE))
    assert not page.of("script")
    assert "{{ 7 * 7 }}" in page.text
    assert any(cell.get("data-method") == HOSTILE for cell in page.of("td"))


def test_two_writes_give_the_same_bytes(report: Path, tmp_path: Path):
    write_report(tmp_path, sample_metrics(), sample_curves(), "Made-up clouds")
    for path in sorted(report.parent.rglob("*")):
        if path.is_file():
            again = tmp_path / path.relative_to(report.parent)
            assert again.read_bytes() == path.read_bytes(), path.name


def test_the_comparison_shows_every_run_and_its_difference(
    comparison: Path, metrics: dict[str, Any]
):
    page = Page(comparison)
    cells = {
        (cell["data-run"], cell["data-method"], cell["data-metric"]): cell["data-value"]
        for cell in page.of("td")
        if "data-metric" in cell
    }
    other = sample_metrics(seed=1)["methods"]
    for name in metrics["methods"]:
        for metric in METRICS:
            assert float(cells["first", name, metric] or "nan") == metrics["methods"][name][metric]
            second = cells[HOSTILE, name, metric]
            assert second == ("" if name == "c3" else repr(other[name][metric]))
    change = other["realign"]["m_z"] - metrics["methods"]["realign"]["m_z"]
    assert abs(change) >= 0.0005
    assert f"<small>{change:+.3f}</small>" in page.text
    assert "-0.000" not in page.text
    assert drawn(comparison) == {"run-tradeoff", "run-bars"}
    assert not page.of("script")


def test_a_comparison_needs_two_runs(tmp_path: Path):
    with pytest.raises(ValueError, match="two runs or more, got 1"):
        write_comparison({"only": {"metrics": sample_metrics(), "curves": {}}}, tmp_path)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("width", [1200, 375])
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_the_page_opens_from_disk_at_any_width(
    chromium: Any, request: pytest.FixtureRequest, which: str, width: int
):
    path: Path = request.getfixturevalue(which)
    resize(chromium, width)
    chromium.get(path.as_uri())
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return innerWidth") == width
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = chromium.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(svg => {"
        "const box = svg.getBoundingClientRect();"
        "return [box.left, box.right, box.width, box.height]})"
    )
    assert len(boxes) == len(drawn(path))
    for left, right, wide, high in boxes:
        assert wide > 200
        assert high > 50
        assert left >= 0
        assert right <= width
    shown = chromium.execute_script(
        "return [...document.querySelectorAll('h1, h2, .verdict, figcaption, dd, tbody th')]"
        ".map(element => element.checkVisibility() && element.getBoundingClientRect().height > 0)"
    )
    assert shown
    assert all(shown)


def test_the_browser_reads_the_exact_numbers(chromium: Any, report: Path, metrics: dict[str, Any]):
    chromium.get(report.as_uri())
    read = chromium.execute_script(
        "return [...document.querySelectorAll('td[data-metric]')].map(cell =>"
        "[cell.dataset.method, cell.dataset.metric, Number(cell.dataset.value), cell.innerText])"
    )
    found: dict[str, dict[str, float]] = {}
    for name, metric, value, text in read:
        found.setdefault(name, {})[metric] = value
        assert float(text.split()[0]) == pytest.approx(
            value, abs=0.0501 if value >= 10 else 0.000501
        )
    assert found == metrics["methods"]


def test_the_table_scrolls_inside_its_own_box_on_a_phone(chromium: Any, report: Path):
    resize(chromium, 375)
    chromium.get(report.as_uri())
    inner, outer = chromium.execute_script(
        "const box = document.querySelector('#methods').parentElement;"
        "return [box.scrollWidth, box.clientWidth]"
    )
    assert inner > outer
    assert outer < 375


def test_print_fits_the_paper(chromium: Any, report: Path):
    resize(chromium, 703)  # A4 less its margins, in CSS pixels
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        chromium.get(report.as_uri())
        table = chromium.execute_script(
            "return document.querySelector('#methods').getBoundingClientRect().right"
        )
        assert table <= 703
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
