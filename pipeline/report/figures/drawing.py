"""What all figures share: the look, a method's colour and marker, SVG and PNG as bytes."""

from __future__ import annotations

import io
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.report.metrics import split_symbols

Marker = str | tuple[int, int, float]
"""A marker by matplotlib's name, or a star: its number of points, 1, and its angle."""

WIDTH = 5.0
"""Inches; narrow, so that letters stay readable where a phone scales the figure down."""

GREY = "#6b6b6b"
IMAGE_COLOUR = "#0072B2"
TEXT_COLOUR = "#D55E00"

_TITLE_SIGNS = 66
_SMALLEST_SHARE = 1e-9
_PNG_DOTS_PER_INCH = 180
_FONT = "'DejaVu Sans'"
_LOOK: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
}

# Hues from Okabe and Ito and from Tol, one family of hues a family of methods; the marker tells
# methods of a family apart and carries the figure when it is printed in grey.
_APPEARANCE: dict[str, tuple[str, Marker]] = {
    "identity": ("#8c8c8c", "P"),
    "permuted": ("#c2c2c2", "X"),
    "oracle": ("#4d4d4d", "*"),
    "centroid": ("#56B4E9", "o"),
    "c3": ("#DDCC77", "D"),
    "unicorn": ("#0072B2", "v"),
    "realign": ("#E69F00", "s"),
    "moment": ("#D55E00", "^"),
    "bures-block": ("#44AA99", "h"),
    "bures-subspace": ("#117733", "p"),
    "bures-gromov": ("#8BA62A", (4, 1, 0)),
    "anisoalign-radial": ("#F28CBB", (3, 1, 0)),
    "anisoalign-init": ("#EBC3DC", "<"),
    "anisoalign-refine": ("#CC79A7", ">"),
    "anisoalign-prior": ("#AA4499", "d"),
    "anisoalign-phase": ("#882255", "8"),
    "anisoalign": ("#5B2A86", "H"),
}


@dataclass(frozen=True)
class Drawing:
    """A figure with the title and the reading aid that stand beside it in the page."""

    name: str
    title: str
    caption: str
    figure: Any


def colour(name: str) -> str:
    """Return a method's colour, the same in every figure."""
    return _APPEARANCE.get(name, ("#999933", "."))[0]


def marker(name: str) -> Marker:
    """Return a method's marker, the same in every figure."""
    return _APPEARANCE.get(name, ("#999933", "."))[1]


def plain(text: str) -> str:
    """Return text that matplotlib shows letter by letter: no formulas, nothing unprintable."""
    return "".join(letter for letter in text if letter.isprintable()).replace("$", r"\$")


def formula(text: str) -> str:
    """Return text whose symbols such as M_Z are set with subscripts."""
    return "".join(
        plain(before)
        if not subscript
        else f"{plain(before[: -_symbol_length(before)])}"
        f"${before[-_symbol_length(before) :]}_{{\\mathrm{{{subscript}}}}}$"
        for before, subscript in split_symbols(text)
    )


def _symbol_length(before: str) -> int:
    return len("chance") if before.endswith("chance") else 1


def wrapped(label: str, width: int) -> str:
    """Return a label in lines of so many signs: names of modalities may be long."""
    return textwrap.fill(label, width, break_long_words=False, break_on_hyphens=False)


@contextmanager
def look() -> Iterator[None]:
    """Draw in the report's style while inside, whatever the user's own matplotlib settings."""
    with matplotlib.style.context(_LOOK, after_reset=True):
        yield


def panels(title: str, rows: int, columns: int, height: float, **options: Any) -> tuple[Any, Any]:
    """Return a titled figure and its axes (rows, columns); `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    lines = "\n".join(map(formula, wrapped(title, _TITLE_SIGNS).splitlines()))
    figure.suptitle(lines, fontsize=10.5, x=0.02, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def handle(label: str, **style: Any) -> Any:
    """Return an entry for a legend."""
    return Line2D([], [], label=label, **style)


def visible(values: Sequence[float]) -> list[float]:
    """Return falling eigenvalues without those zero to rounding, which stretch a log axis."""
    return [value for value in values if value > _SMALLEST_SHARE * values[0]]  # none of NaN


def legend_below(figure: Any, handles: Iterable[Any], columns: int) -> None:
    """Put a legend under all panels."""
    figure.legend(handles=list(handles), loc="outside lower left", ncols=columns, columnspacing=1.2)


def png(drawing: Drawing) -> bytes:
    """Return the figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with look():
        drawing.figure.savefig(
            buffer, format="png", dpi=_PNG_DOTS_PER_INCH, metadata={"Software": None}
        )
    return buffer.getvalue()


def svg(drawing: Drawing) -> str:
    """Return the figure as SVG that can stand alone or in a page beside others.

    Every id starts with the figure's name, so that figures in one page don't collide; no size is
    fixed, so that the page scales it. The same figure gives the same text.
    """
    buffer = io.BytesIO()
    with look(), mpl.rc_context({"svg.hashsalt": drawing.name}):
        drawing.figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if attribute == "id":
                element.set(attribute, f"{drawing.name}-{value}")
            elif attribute.endswith("href") and value.startswith("#"):
                element.set(attribute, f"#{drawing.name}-{value[1:]}")
            elif "url(#" in value:
                element.set(attribute, value.replace("url(#", f"url(#{drawing.name}-"))
            elif _FONT in value:  # where it is not installed, the fonts nearest in width
                element.set(attribute, value.replace(_FONT, f"{_FONT}, Verdana, sans-serif"))
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", drawing.title)
    return ElementTree.tostring(root, encoding="unicode")
