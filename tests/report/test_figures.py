"""What the figures are computed from: envelope, mixing, smoothing, labels, formulas."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.report.figures import draw_figures
from pipeline.report.figures.drawing import Drawing, colour, look, marker, panels, plain, svg
from pipeline.report.figures.labels import number_points
from pipeline.report.figures.tradeoff import mixing_methods, upper_envelope
from pipeline.report.figures.training import smoothed
from pipeline.report.methods import TABLE_NAMES
from pipeline.report.metrics import diagnostic, mixing, mixing_interval, split_symbols
from tests.report.samples import sample_curves, sample_metrics


def test_the_envelope_is_beaten_by_no_point_of_any_line():
    lines = [[(0.0, 1.0), (1.0, 0.0)], [(0.0, 0.6), (0.8, 0.6), (0.9, 0.0)]]
    envelope = upper_envelope(lines)
    xs, ys = zip(*envelope, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)
    assert envelope[0] == (0.0, 1.0)
    assert (0.8, 0.6) in envelope  # the corner of the second line stands out of the first
    assert envelope[-1] == (1.0, 0.0)
    for x, y in envelope:
        assert y >= 1 - x - 1 / 40  # lines are read at that many steps
    assert not any(x == pytest.approx(0.5) and y < 0.59 for x, y in envelope)


def test_mixing_is_the_harmonic_mean():
    assert mixing(0.5, 0.5) == pytest.approx(0.5)
    assert mixing(1.0, 0.5) == pytest.approx(2 / 3)
    assert mixing(0.9, 0.0) == 0.0
    assert mixing(0.0, 0.0) == 0.0
    assert math.isnan(mixing(math.nan, 0.5))
    metrics = {"intervals": {"a": {"m_z": [0.4, 0.6], "m_x": [0.4, 0.6]}}}
    assert mixing_interval(metrics, "a") == pytest.approx((0.4, 0.6))
    assert mixing_interval(metrics, "b") is None


def test_the_close_up_holds_the_methods_that_mix_and_no_control():
    near = mixing_methods({"run": sample_metrics()})
    assert near == ["centroid", "realign", "bures-block", "bures-subspace", "anisoalign"]


def test_smoothing_keeps_constants_and_lines_and_takes_noise_away():
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    line = [float(step) for step in range(400)]
    assert smoothed(line)[20:-20] == pytest.approx(line[20:-20])
    jumps = [float(step % 2) for step in range(400)]
    assert all(abs(value - 0.5) < 0.1 for value in smoothed(jumps))


def test_labels_of_points_at_one_place_keep_apart():
    figure, axes = panels("labels", 1, 1, 3)
    points = [(0.5, 0.5)] * 5
    axes[0, 0].plot([0, 1], [0, 1])
    figure.draw_without_rendering()
    number_points(axes[0, 0], points, ["1", "2", "3", "4", "5"], [(0.52, 0.52)])
    places = [text.xyann for text in axes[0, 0].texts]
    assert len(places) == 5
    for index, first in enumerate(places):
        for second in places[:index]:
            assert math.dist(first, second) > 6


def test_every_method_looks_its_own():
    looks = {(colour(name), marker(name)) for name in TABLE_NAMES}
    assert len(looks) == len(TABLE_NAMES)
    assert len({marker(name) for name in TABLE_NAMES}) == len(TABLE_NAMES)


def test_only_whole_symbols_are_set_as_symbols():
    assert split_symbols("by M_Z, O_13") == [("by M", "Z"), (", O", "13"), ("", "")]
    assert split_symbols("my_M_Zebra run_M_Z") == [("my_M_Zebra run_M_Z", "")]
    assert diagnostic("o_13").symbol == "O_13"
    assert "13" in diagnostic("e_13").meaning
    assert diagnostic("something new").symbol == "something new"


def test_foreign_text_is_no_formula():
    with look():
        figure, axes = panels("title", 1, 1, 2)
        axes[0, 0].set_xlabel(plain("$\\frac{$ a\nb\x00 $x$ <&>"))
    text = svg(Drawing("foreign", "x", "x", figure))
    words = "".join(ElementTree.fromstring(text).itertext())
    assert "$\\frac{$ ab $x$ <&>" in words


def test_ids_of_different_figures_differ():
    sections = draw_figures(sample_metrics(), sample_curves())
    ids: list[str] = []
    for drawing in [figure for figures in sections.values() for figure in figures]:
        root = ElementTree.fromstring(svg(drawing))
        own = [element.get("id") for element in root.iter() if element.get("id")]
        ids += own
        references = {
            value[1:]
            for element in root.iter()
            for key, value in element.attrib.items()
            if key.endswith("href")
        }
        assert references <= set(own)
        assert root.get("role") == "img"
        assert root.get("aria-label") == drawing.title
    assert len(ids) == len(set(ids))
