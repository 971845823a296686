"""The captioned-scenes world: procedurally drawn pictures with captions that leave things out.

A scene is a function of `(seed, index)`: its attributes, its picture and its captions never change.
A caption names a part of the scene only, and a picture shows clutter that no caption names; this
information imbalance is what keeps the modality gap of an encoder trained here open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.demo.telling import (
    BACKGROUNDS,
    LIGHTS,
    OPENINGS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Named,
    Telling,
    phrase,
    word,
)

IMAGE_SIZE = 64
"""Height and width of a picture, in pixels."""

CAPTION_INDEX = 0
IMAGE_INDEX = 10_000_000
PAIR_INDEX = 20_000_000
TRAINING_INDEX = 1_000_000_000
"""Where the scenes of captions, images, held-out pairs and training begin, in any world."""
STREAM_SCENES = 10_000_000
"""Scenes that a stream below training has."""

_DROP_SHAPE = 0.10
_DROP_COLOUR = 0.12
_DROP_SIZE = 0.40
_DROP_RELATION = 0.25
_DROP_BACKGROUND = 0.35
_DROP_LIGHT = 0.70
_DROP_SECOND = 0.06
_DROP_FIRST = 0.03

_RADII = (7.0, 10.5, 14.5)
_RGB = np.array(
    [
        (214, 40, 40),
        (46, 160, 67),
        (38, 84, 214),
        (240, 210, 50),
        (126, 50, 168),
        (240, 130, 30),
        (60, 200, 214),
        (245, 150, 190),
    ],
    dtype=np.float32,
)
_TURNS = 5
_PHASES = 4


class Figure(NamedTuple):
    """One named thing of a scene, as positions in `SHAPES`, `COLOURS` and `SIZES`."""

    shape: int
    colour: int
    size: int


@dataclass(frozen=True)
class Scene:
    """The scene at `(seed, index)`: two figures, how they stand, what is behind them."""

    seed: int
    index: int

    @cached_property
    def _draws(self) -> list[int]:
        counts = (8, 8, 3, 8, 8, 3, 4, 4, 5)
        return [int(k) for k in self._generator(0).integers(0, counts)]

    @property
    def first(self) -> Figure:
        """The figure that the relation speaks of."""
        return Figure(*self._draws[0:3])

    @property
    def second(self) -> Figure:
        """The figure that the relation refers to."""
        return Figure(*self._draws[3:6])

    @property
    def relation(self) -> int:
        """Where `first` stands from `second`, as a position in `RELATIONS`."""
        return self._draws[6]

    @property
    def background(self) -> int:
        """The pattern behind the figures, as a position in `BACKGROUNDS`."""
        return self._draws[7]

    @property
    def light(self) -> int:
        """Where the background is brightest, as a position in `LIGHTS`."""
        return self._draws[8]

    def image(self) -> NDArray[np.uint8]:
        """Draw the picture: uint8 `[IMAGE_SIZE, IMAGE_SIZE, 3]`, RGB."""
        rng = self._generator(1)
        canvas = _backdrop(self.background, self.light, rng)
        _scatter(canvas, int(rng.integers(1, 6)), rng)
        for figure, centre in zip((self.first, self.second), self._centres(rng), strict=True):
            mask = _shape_mask(figure.shape, figure.size, int(rng.integers(_TURNS)))
            ink = _RGB[figure.colour] * rng.uniform(0.88, 1.08) + rng.uniform(-14, 14, 3)
            _paint(canvas, mask, centre, ink)
        _scatter(canvas, int(rng.integers(0, 2)), rng)
        return np.clip(canvas, 0, 255).astype(np.uint8)

    def telling(self, variant: int = 0) -> Telling:
        """Return what a caption of this scene names: a seeded choice of what to leave out."""
        chance = self._chances(variant)
        figures = [_named(self.first, chance[0:6]), _named(self.second, chance[6:12])]
        relation: int | None = self.relation
        if chance[12] < 0.5:
            figures.reverse()
            relation = OPPOSITE[self.relation]
        if chance[13] < _DROP_SECOND:
            figures.pop()
        if len(figures) < 2 or chance[14] < _DROP_RELATION:
            relation = None
        return Telling(
            figures=tuple(figures),
            relation=relation,
            background=self.background if chance[16] >= _DROP_BACKGROUND else None,
            light=self.light if chance[18] >= _DROP_LIGHT else None,
        )

    def everything(self) -> Telling:
        """Return all that captions can name of this scene, nothing left out."""
        return Telling(
            figures=(Named(*self.first), Named(*self.second)),
            relation=self.relation,
            background=self.background,
            light=self.light,
        )

    def caption(self, variant: int = 0) -> str:
        """Write a caption: what `telling` names, in seeded words.

        Args:
            variant: which of the scene's captions; each drops attributes anew.
        """
        return self._words(self.telling(variant), variant)

    def description(self, variant: int = 0) -> str:
        """Write a caption that leaves nothing out, in the words of `caption`."""
        told = self.everything()
        if self._chances(variant)[12] < 0.5:
            first, second = told.figures
            told = replace(told, figures=(second, first), relation=OPPOSITE[self.relation])
        return self._words(told, variant)

    def _words(self, told: Telling, variant: int) -> str:
        chance = self._chances(variant)
        of_figures = [chance[0:6], chance[6:12]]
        if chance[12] < 0.5:
            of_figures.reverse()
        phrases = [phrase(*one) for one in zip(told.figures, of_figures, strict=False)]
        words = phrases[0]
        if told.relation is not None:
            words = f"{words} {word(RELATIONS[told.relation], chance[15])} {phrases[1]}"
        elif len(phrases) == 2:
            words = f"{words} {('and', 'next to', 'with')[int(chance[15] * 3)]} {phrases[1]}"
        if told.background is not None:
            words = f"{words} {word(BACKGROUNDS[told.background], chance[17])}"
        if told.light is not None:
            words = f"{words}, {word(LIGHTS[told.light], chance[19])}"
        return OPENINGS[int(chance[20] * len(OPENINGS))] + words

    def _chances(self, variant: int) -> list[float]:
        chances: list[float] = self._generator(2 + variant).random(24).tolist()
        return chances

    def _centres(self, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (row, column) centres of both figures, in pixels."""
        near, far, across, other = rng.uniform((15, 44, 27, 27), (21, 50, 38, 38)).astype(int)
        first, second = (
            ((near, across), (far, other))
            if self.relation in (0, 2)
            else (
                (far, across),
                (near, other),
            )
        )
        if self.relation in (0, 1):
            return (first[1], first[0]), (second[1], second[0])
        return first, second

    def _generator(self, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, self.index, purpose]))


def _named(figure: Figure, chance: list[float]) -> Named:
    return Named(
        shape=figure.shape if chance[4] >= _DROP_SHAPE else None,
        colour=figure.colour if chance[2] >= _DROP_COLOUR else None,
        size=figure.size if chance[0] >= _DROP_SIZE else None,
    )


def _backdrop(background: int, light: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the empty canvas, float32 `[IMAGE_SIZE, IMAGE_SIZE, 3]` in 0 to 255."""
    tone = np.float32(rng.uniform(95, 185)) + rng.uniform(-22, 22, 3).astype(np.float32)
    contrast, slope = rng.uniform((12, 30), (26, 60)).astype(np.float32)
    relief = contrast * _pattern(background, int(rng.integers(_PHASES)))
    relief = relief + slope * _gradient(light)
    canvas: NDArray[np.float32] = relief[:, :, None] + tone
    return canvas


def _scatter(canvas: NDArray[np.float32], count: int, rng: np.random.Generator) -> None:
    """Paint `count` pieces of clutter, which no caption names, on the canvas in place."""
    places = rng.integers((4, 4, 0), (IMAGE_SIZE - 4, IMAGE_SIZE - 4, 12), (count, 3))
    inks = rng.uniform(20, 235, (count, 3)).astype(np.float32)
    for (row, column, kind), ink in zip(places.tolist(), inks, strict=True):
        _paint(canvas, _clutter_mask(kind), (row, column), ink)


def _paint(
    canvas: NDArray[np.float32],
    mask: NDArray[np.float32],
    centre: tuple[int, int],
    ink: NDArray[np.floating],
) -> None:
    """Blend `ink` (RGB) into the canvas where `mask` `[side, side, 1]` says, cut at the edges."""
    side = mask.shape[0]
    top, left = int(centre[0]) - side // 2, int(centre[1]) - side // 2
    above, before = max(0, -top), max(0, -left)
    below, after = min(side, IMAGE_SIZE - top), min(side, IMAGE_SIZE - left)
    part = mask[above:below, before:after]
    patch = canvas[top + above : top + below, left + before : left + after]
    patch += part * (ink.astype(np.float32) - patch)


@cache
def _pattern(background: int, phase: int) -> NDArray[np.float32]:
    """Return the relief of a background, float32 `[IMAGE_SIZE, IMAGE_SIZE]` in -1 to 1."""
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 3 * phase
    match BACKGROUNDS[background]:
        case "striped":
            relief = np.sign(np.sin((rows + columns + 0.5) * math.pi / 7))
        case "checkered":
            relief = np.sign(
                np.sin((rows + 0.5) * math.pi / 8) * np.sin((columns + 0.5) * math.pi / 8)
            )
        case "dotted":
            distance = np.hypot(rows % 11 - 5, columns % 11 - 5)
            relief = np.where(distance < 3.1, 1.0, -0.3)
        case _:
            relief = np.zeros(rows.shape)
    pattern: NDArray[np.float32] = relief.astype(np.float32)
    return pattern


@cache
def _gradient(light: int) -> NDArray[np.float32]:
    """Return the slope of the light, float32 `[IMAGE_SIZE, IMAGE_SIZE]` in -1 to 1."""
    rows, columns = np.mgrid[-1 : 1 : IMAGE_SIZE * 1j, -1 : 1 : IMAGE_SIZE * 1j]
    zero = np.zeros_like(rows)
    slopes = {"even": zero, "left": -columns, "right": columns, "top": -rows, "bottom": rows}
    slope: NDArray[np.float32] = slopes[LIGHTS[light]].astype(np.float32)
    return slope


@cache
def _shape_mask(shape: int, size: int, turn: int) -> NDArray[np.float32]:
    """Return a shape's coverage, float32 `[side, side, 1]` in 0 to 1, turned a little."""
    radius = _RADII[size]
    side = 2 * math.ceil(radius) + 3
    fine = 8
    sheet = Image.new("L", (side * fine, side * fine))
    pen = ImageDraw.Draw(sheet)
    middle = side * fine / 2
    scale = radius * fine
    if SHAPES[shape] in ("circle", "ring"):
        reach = 0.9 * scale
        pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=255)
        if SHAPES[shape] == "ring":
            hole = 0.5 * scale
            pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    else:
        angle = math.radians((turn - _TURNS // 2) * 5)
        pen.polygon(
            [
                (
                    middle + scale * (x * math.cos(angle) - y * math.sin(angle)),
                    middle + scale * (x * math.sin(angle) + y * math.cos(angle)),
                )
                for x, y in _outline(SHAPES[shape])
            ],
            fill=255,
        )
    return _coverage(sheet, fine)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a polygon in a unit circle, x to the right and y down."""

    def ring(
        corners: int, start: float, reach: tuple[float, ...] = (1.0,)
    ) -> list[tuple[float, float]]:
        angles = [math.radians(start) + 2 * math.pi * k / corners for k in range(corners)]
        radii = [reach[k % len(reach)] for k in range(corners)]
        return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]

    match shape:
        case "square":
            return ring(4, 45, (1.1,))
        case "triangle":
            return ring(3, -90, (1.1,))
        case "star":
            return ring(10, -90, (1.1, 0.45))
        case "diamond":
            return [(0, -1.1), (0.6, 0), (0, 1.1), (-0.6, 0)]
        case "hexagon":
            return ring(6, 0, (1.0,))
        case _:
            arm = 0.32
            return [
                *((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)),
                *((arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)),
            ]


@cache
def _clutter_mask(kind: int) -> NDArray[np.float32]:
    """Return the coverage of a speck or a scratch, float32 `[side, side, 1]` in 0 to 1."""
    fine, side = 8, 11
    sheet = Image.new("L", (side * fine, side * fine))
    pen = ImageDraw.Draw(sheet)
    middle = side * fine / 2
    if kind < 4:
        reach = (1.2 + 0.5 * kind) * fine
        pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=220)
    else:
        angle = math.pi * (kind - 4) / 8
        x, y = 5 * fine * math.cos(angle), 5 * fine * math.sin(angle)
        pen.line((middle - x, middle - y, middle + x, middle + y), fill=220, width=fine)
    return _coverage(sheet, fine)


def _coverage(sheet: Image.Image, fine: int) -> NDArray[np.float32]:
    """Average a finely drawn sheet to coverage, float32 `[side, side, 1]` in 0 to 1."""
    side = sheet.height // fine
    ink = np.asarray(sheet, dtype=np.float32).reshape(side, fine, side, fine)
    coverage: NDArray[np.float32] = ink.mean((1, 3))[:, :, None] / np.float32(255)
    return coverage
