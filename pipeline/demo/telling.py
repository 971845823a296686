"""What words say of a scene: the vocabulary, and what a caption names and leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "hexagon")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("plain", "striped", "checkered", "dotted")
LIGHTS = ("even", "left", "right", "top", "bottom")
"""Where the gradient of the background is brightest; "even" has none."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "small": ("small", "tiny", "little"),
    "medium": ("medium", "mid-sized"),
    "large": ("large", "big", "huge"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "plain": ("on a plain background", "against a plain backdrop"),
    "striped": ("on a striped background", "against stripes"),
    "checkered": ("on a checkered background", "against a checkerboard"),
    "dotted": ("on a dotted background", "against polka dots"),
    "even": ("in even light",),
    "left": ("lit from the left", "brighter on the left"),
    "right": ("lit from the right", "brighter on the right"),
    "top": ("lit from the top", "brighter at the top"),
    "bottom": ("lit from the bottom", "brighter at the bottom"),
}
_NAMELESS = ("shape", "object", "figure")
OPENINGS = ("", "", "", "a picture of ", "there is ", "we see ", "an image with ")
OPPOSITE = (1, 0, 3, 2)
"""Positions in `RELATIONS` as seen from the other figure."""


class Named(NamedTuple):
    """A figure as far as it is told of: positions, None for what is left out."""

    shape: int | None
    colour: int | None
    size: int | None


@dataclass(frozen=True)
class Telling:
    """What is told of a scene: one or two figures, where the first stands from the second."""

    figures: tuple[Named, ...]
    relation: int | None
    background: int | None
    light: int | None


def phrase(figure: Named, chance: list[float]) -> str:
    """Return the words for a figure; `chance` (6,), in 0 to 1, chooses among synonyms."""
    words: list[str] = []
    if figure.size is not None:
        words.append(word(SIZES[figure.size], chance[1]))
    if figure.colour is not None:
        words.append(word(COLOURS[figure.colour], chance[3]))
    if figure.shape is not None:
        words.append(word(SHAPES[figure.shape], chance[5]))
    else:
        words.append(_NAMELESS[int(chance[5] * len(_NAMELESS))])
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join((article, *words))


def word(name: str, chance: float) -> str:
    """Return one of the words for a name; `chance` in 0 to 1 chooses."""
    choices = SYNONYMS.get(name)
    return name if choices is None else choices[int(chance * len(choices))]
