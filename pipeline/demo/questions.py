"""Questions about scenes of the packaged world, with their answers, and what captions say.

Text alone can be asked only for what a caption names; a picture, for everything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.demo.telling import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SYNONYMS,
    Telling,
)

QUESTION_TASKS = ("colour", "shape", "size", "relation", "count", "background", "presence")
_PRESENCE_HARD = 0.5
"""Share of the absent things that are made of two attributes that are both there, apart."""
_COUNT_NONE = 1 / 3
"""Share of the counts that are of something absent."""


@dataclass(frozen=True)
class Question:
    """A question with a short answer, of one of `QUESTION_TASKS`."""

    task: str
    prompt: str
    answer: str


def questions(telling: Telling, generator: np.random.Generator) -> list[Question]:
    """Return a question of each task that the telling answers, of presence one yes and one no.

    Nothing is asked where the answer hangs on something that is left out.
    """
    return [*_of_figures(telling, generator), *_of_scene(telling), *_presence(telling, generator)]


def _of_figures(telling: Telling, generator: np.random.Generator) -> Iterator[Question]:
    """Yield questions about one of two figures, told apart by an attribute that is not asked."""
    if len(telling.figures) < 2:
        return
    asked = int(generator.integers(2))
    figure = telling.figures[asked]
    for task, value, names in (
        ("colour", figure.colour, COLOURS),
        ("shape", figure.shape, SHAPES),
        ("size", figure.size, SIZES),
    ):
        named = _apart(telling, task, generator)
        if value is not None and named is not None:
            yield Question(task, f"what {task} is {named[asked]}?", names[value])
    named = _apart(telling, "relation", generator)
    if telling.relation is not None and named is not None:
        answer = RELATIONS[telling.relation].removesuffix(" of")
        yield Question("relation", f"where is {named[0]} from {named[1]}?", answer)
    yield from _count(telling, asked, generator)


def _apart(telling: Telling, task: str, generator: np.random.Generator) -> tuple[str, str] | None:
    """Return words that tell the two figures apart, by an attribute drawn from those that do."""
    first, second = telling.figures
    ways = [
        (f"the {names[one]} one", f"the {names[other]} one")
        for asked, one, other, names in (
            ("colour", first.colour, second.colour, COLOURS),
            ("size", first.size, second.size, SIZES),
        )
        if asked != task and one is not None and other is not None and one != other
    ]
    one, other = first.shape, second.shape
    if task != "shape" and one is not None and other is not None and one != other:
        ways.append((f"the {SHAPES[one]}", f"the {SHAPES[other]}"))
    return ways[int(generator.integers(len(ways)))] if ways else None


def _count(telling: Telling, asked: int, generator: np.random.Generator) -> Iterator[Question]:
    ways = []
    for place, names in ((0, SHAPES), (1, COLOURS)):
        values = [figure[place] for figure in telling.figures]
        known = [value for value in values if value is not None]
        if len(known) == 2:
            ways.append((known, names))
    if not ways:
        return
    known, names = ways[int(generator.integers(len(ways)))]
    value = known[asked]
    if generator.random() < _COUNT_NONE:
        value = int(generator.choice([one for one in range(len(names)) if one not in known]))
    yield Question("count", f"how many {names[value]} ones are there?", str(known.count(value)))


def _of_scene(telling: Telling) -> Iterator[Question]:
    if telling.background is not None:
        yield Question("background", "what is the background?", BACKGROUNDS[telling.background])


def _presence(telling: Telling, generator: np.random.Generator) -> Iterator[Question]:
    """Yield one question about something there and one about something absent.

    A thing is a colour with a shape or with a size; both figures have to be known in both.
    """
    ways = []
    for place, names in ((0, SHAPES), (2, SIZES)):
        there = [(figure.colour, figure[place]) for figure in telling.figures]
        known = [(one, other) for one, other in there if one is not None and other is not None]
        if len(known) == 2:
            ways.append((known, names))
    if not ways:
        return
    there_known, names = ways[int(generator.integers(len(ways)))]
    present = there_known[int(generator.integers(2))]
    (colour, other), (second_colour, second_other) = there_known
    mixed = [(colour, second_other), (second_colour, other)]
    hard = [pair for pair in mixed if pair not in there_known]
    if hard and generator.random() < _PRESENCE_HARD:
        absent = hard[int(generator.integers(len(hard)))]
    else:
        absent = present
        while absent in there_known:
            drawn = generator.integers((len(COLOURS), len(names)))
            absent = (int(drawn[0]), int(drawn[1]))
    for (one, two), answer in ((present, "yes"), (absent, "no")):
        phrase = (
            f"{COLOURS[one]} {SHAPES[two]}"
            if names is SHAPES
            else f"{SIZES[two]} {COLOURS[one]} one"
        )
        article = "an" if phrase[0] in "aeiou" else "a"
        yield Question("presence", f"is there {article} {phrase}?", answer)


_ATTRIBUTES = {
    phrase: name
    for name in (*SHAPES, *COLOURS, *SIZES, *BACKGROUNDS)
    for phrase in SYNONYMS.get(name, (name,))
}
_PHRASES = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _ATTRIBUTES), key=len, reverse=True)) + r")\b"
)


def attributes(caption: str) -> Counter[str]:
    """Return the shapes, colours, sizes and background that a caption names, synonyms as one."""
    return Counter(_ATTRIBUTES[phrase] for phrase in _PHRASES.findall(caption))


def attributes_of(telling: Telling) -> Counter[str]:
    """Return the shapes, colours, sizes and background of a telling, as `attributes` names them."""
    found: Counter[str] = Counter()
    for figure in telling.figures:
        for value, names in (
            (figure.shape, SHAPES),
            (figure.colour, COLOURS),
            (figure.size, SIZES),
        ):
            if value is not None:
                found[names[value]] += 1
    if telling.background is not None:
        found[BACKGROUNDS[telling.background]] += 1
    return found
