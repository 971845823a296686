"""A report of other modalities calls them by their names, everywhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.names import EITHER, Names
from pipeline.report.comparison import write_comparison
from pipeline.report.figures import draw_figures
from pipeline.report.figures.drawing import Drawing, svg
from pipeline.report.methods import TABLE_NAMES, method_label, run_rows, table_rows
from pipeline.report.metrics import (
    METRICS,
    described_metrics,
    diagnostic,
    names_of,
    names_of_all,
)
from pipeline.report.page import facts, write_report
from pipeline.report.verdict import verdict
from tests.report.samples import sample_curves, sample_metrics

NAMES = Names(source="audio", target="depth")
DEFAULTS = re.compile(r"\b(texts?|images?|captions?)\b", re.IGNORECASE)
FITTING = {"images": 60, "texts": 70, "separate": True}


class Shown(HTMLParser):
    """Collects what a reader of a page sees or hears: texts, titles, labels."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag == "style"
        self.words += [value or "" for name, value in attrs if name in ("aria-label", "title")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def named_metrics(names: Names | None = NAMES, **changed: Any) -> dict[str, Any]:
    said = {} if names is None else {"names": asdict(names)}
    return {**sample_metrics(), "fitting": FITTING, **said, **changed}


def drawings(names: Names | None) -> dict[str, Drawing]:
    sections = draw_figures(named_metrics(names), sample_curves())
    return {one.name: one for drawn in sections.values() for one in drawn}


def letters(drawing: Drawing) -> str:
    """Return all that stands in a figure, its title and its caption."""
    found = ElementTree.fromstring(svg(drawing))
    return " ".join([drawing.title, drawing.caption, *found.itertext()])


def test_a_page_has_no_word_of_text_or_images(tmp_path: Path):
    page = write_report(tmp_path, named_metrics(), sample_curves(), "Pairs")
    words = Shown(page).words
    assert [one for one in words if DEFAULTS.search(one)] == []
    said = " ".join(words)
    assert "mixes best with the depth embeddings" in said
    assert "fitted on 60 depth embeddings and 70 unpaired audio embeddings" in said
    assert "Audio (identity)" in said
    usual = Shown(write_report(tmp_path / "usual", named_metrics(None), sample_curves(), "Pairs"))
    assert sum(bool(DEFAULTS.search(one)) for one in usual.words) > 30


@pytest.mark.parametrize("other", [NAMES, None])
def test_a_comparison(tmp_path: Path, other: Names | None):
    """Runs of one pair of modalities are told in its words, others of source and target."""
    runs = {
        "a": {"metrics": named_metrics(), "curves": {}},
        "b": {"metrics": named_metrics(other), "curves": {}},
    }
    said = " ".join(" ".join(Shown(write_comparison(runs, tmp_path)).words).split())
    assert "Entering the" in said
    if other == NAMES:
        assert not DEFAULTS.search(said)
        assert "Entering the depth embeddings against keeping the audio embeddings" in said
        assert "Permuted depth" in said
        return
    assert "Entering the target embeddings against keeping the source embeddings" in said
    assert "Source (identity)" in said
    assert "mixing around target embeddings" in said
    # Each run's own sentences are in its own words.
    assert "mixes best with the depth embeddings" in said
    assert "mixes best with the images" in said


FIGURES = {
    "clouds": ("the spreads of depth embeddings and audio embeddings", "the depth embeddings do"),
    "spectra": ("depth embeddings", "audio embeddings"),
    "subspace-overlap": ("depth embeddings and audio embeddings",),
    "method-spectra": ("depth embedding minus substitute", "Audio (identity)"),
    "tradeoff": (
        "Entering the depth embeddings against keeping the audio embeddings",
        "up keeps more of the audio embeddings",
        "1 Audio (identity)",
    ),
    "tradeoff-close": ("as it moves the audio embeddings",),
    "mixing": (
        "how well substitutes mix with depth embeddings",
        "Permuted depth",
        "around depth embeddings",
    ),
    "semantics": ("how much of the audio is kept", "each audio embedding's place", "audio"),
    "phases": ("depth embeddings (target)", "audio embeddings (source)", "those of the depth"),
    "target-size": ("How many depth embeddings does a fit need?", "depth embeddings in the fit"),
}


def test_every_figure():
    drawn = drawings(NAMES)
    assert set(FIGURES) <= set(drawn)
    for name, drawing in drawn.items():
        said = " ".join(letters(drawing).split())
        assert not DEFAULTS.search(said), name
        for part in FIGURES.get(name, ()):
            assert part in said, name
        assert FIGURES.get(name) or "audio" not in said


def test_long_names_are_put_in_lines():
    """No title is wider than its figure, and no word is lost."""
    for drawing in drawings(Names(source="electroencephalo", target="point-cloud-scan")).values():
        drawing.figure.draw_without_rendering()
        title = drawing.figure._suptitle
        assert title.get_window_extent().x1 <= drawing.figure.bbox.x1, drawing.name
        assert title.get_text().split()[0] == drawing.title.split()[0]
        if "$" not in title.get_text():
            assert title.get_text().split() == drawing.title.split()


def test_figures_of_text_and_images_stay_as_they_were():
    named, bare = drawings(Names()), drawings(None)
    assert {name: svg(one) for name, one in named.items()} == {
        name: svg(one) for name, one in bare.items()
    }
    said = letters(named["phases"])
    assert "images (target)" in said
    assert "texts (source)" in said
    assert "Target side: how well substitutes mix with images" in letters(named["mixing"])


def test_the_verdict():
    said = verdict(named_metrics())
    assert "mixes best with the depth embeddings" in said
    assert "the audio embeddings' geometry" in said
    assert "the paired depth embedding most often" in said
    assert not DEFAULTS.search(said)
    swapped = verdict(named_metrics(Names(source="image", target="text")))
    assert "mixes best with the texts" in swapped
    assert "the images' geometry" in swapped
    assert "the paired text most often" in swapped


def test_what_the_numbers_rest_on():
    said = facts(named_metrics())
    assert said.startswith("250 held-out pairs of audio and depth, fitted on 60 depth embeddings")
    together = facts(named_metrics(fitting={**FITTING, "separate": False}))
    assert "fitted on 60 depth embeddings and 70 unpaired audio embeddings" in together
    assert facts(named_metrics(None)).startswith("250 held-out pairs, fitted on 60 images and 70")


def test_every_metric_and_number_of_the_gap():
    told = described_metrics(NAMES)
    assert {name: (one.symbol, one.higher_is_better) for name, one in told.items()} == {
        name: (one.symbol, one.higher_is_better) for name, one in METRICS.items()
    }
    for one in told.values():
        assert not DEFAULTS.search(f"{one.name} {one.meaning}")
    assert told["phi"].name == "audio cosine"
    assert told["m_x"].name == "mixing around depth embeddings"
    assert "each audio embedding and its substitute" in told["phi"].meaning
    assert "whose nearest depth embedding is their own" in told["retrieval_r1"].meaning
    assert "substitute of its own audio embedding" in told["paired_cosine"].meaning
    for key in sample_metrics()["gap"]:
        assert not DEFAULTS.search(diagnostic(key, NAMES).meaning)
    assert "of the depth embeddings" in diagnostic("g_sigma", NAMES).meaning
    assert "each depth embedding and its own audio" in diagnostic("pair_distance", NAMES).meaning


def test_every_label_of_a_method():
    for name in TABLE_NAMES:
        assert not DEFAULTS.search(method_label(name, NAMES))
        assert "{" not in method_label(name)
    assert method_label("identity") == "Text (identity)"
    assert method_label("permuted") == "Permuted images"
    assert method_label("{source}", NAMES) == "{source}"


def test_tables():
    assert table_rows(named_metrics())[0][0] == "Audio (identity)"
    assert table_rows(named_metrics(None))[0][0] == "Text (identity)"
    same = {"a": named_metrics(), "b": named_metrics()}
    assert run_rows(same)[0][:2] == ["Audio (identity)", "a"]
    assert run_rows({**same, "c": named_metrics(None)})[0][:2] == ["Source (identity)", "a"]


def test_metrics_of_earlier_releases_are_of_text_and_image():
    assert names_of({}) == Names()
    assert names_of(named_metrics()) == NAMES
    assert names_of_all({"a": named_metrics(None), "b": named_metrics(Names())}) == Names()
    assert names_of_all({"a": named_metrics(None), "b": named_metrics()}) == EITHER
