"""Questions about scenes: true, asked of what is told alone, seeded; captions as they were."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.demo.questions import (
    QUESTION_TASKS,
    Question,
    attributes,
    attributes_of,
    questions,
)
from pipeline.demo.telling import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    RELATIONS,
    SHAPES,
    SIZES,
    SYNONYMS,
    Named,
    Telling,
)
from pipeline.demo.world import Scene

SCENES = 600
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CAPTIONS = "d8f27dd6ca3a6b62a76678ce8a10c3496a2b241bedd837361e82bf04bca2c91e"
"""Of all captions that other datasets of the packaged world were made of."""


def asked(telling: Telling, *key: int) -> list[Question]:
    return questions(telling, np.random.default_rng([7, *key]))


def told(telling: Telling) -> list[dict[str, str]]:
    """Return the figures as the names of what is known of them, by task."""
    return [
        {
            task: names[value]
            for task, names, value in (
                ("shape", SHAPES, figure.shape),
                ("colour", COLOURS, figure.colour),
                ("size", SIZES, figure.size),
            )
            if value is not None
        }
        for figure in telling.figures
    ]


def meant(figures: list[dict[str, str]], words: str) -> dict[str, str]:
    """Return the one figure that words such as "the red one" can mean."""
    name = words.removeprefix("the ").removesuffix(" one")
    (found,) = [figure for figure in figures if name in figure.values()]
    return found


def right(question: Question, telling: Telling) -> str:
    """Answer a question from a telling, by its words alone."""
    figures = told(telling)
    match question.task:
        case "colour" | "shape" | "size":
            found = re.fullmatch(rf"what {question.task} is (the .+)\?", question.prompt)
            assert found
            return meant(figures, found[1])[question.task]
        case "relation":
            found = re.fullmatch(r"where is (the .+) from (the .+)\?", question.prompt)
            assert found
            assert telling.relation is not None
            # A telling's relation is that of its first figure.
            place = [figures.index(meant(figures, words)) for words in found.groups()]
            relation = RELATIONS[telling.relation]
            assert sorted(place) == [0, 1]
            return (relation if place == [0, 1] else OPPOSITE[relation]).removesuffix(" of")
        case "count":
            found = re.fullmatch(r"how many (\w+) ones are there\?", question.prompt)
            assert found
            return str(sum(found[1] in figure.values() for figure in figures))
        case "background":
            assert telling.background is not None
            return BACKGROUNDS[telling.background]
        case "presence":
            found = re.fullmatch(r"is there an? (\w+) (\w+)(?: one)?\?", question.prompt)
            assert found
            there = any(set(found.groups()) <= set(figure.values()) for figure in figures)
            return "yes" if there else "no"
    raise AssertionError(question.task)


def every_question() -> Iterator[tuple[Question, Telling, Scene]]:
    for index in range(SCENES):
        scene = Scene(5, index)
        for telling in (scene.telling(), scene.telling(1), scene.everything()):
            for question in asked(telling, index):
                yield question, telling, scene


def test_captions_are_what_they_were():
    digest = hashlib.sha256()
    for seed in (0, 3):
        for index in range(3000):
            for variant in (0, 1):
                digest.update(Scene(seed, index).caption(variant).encode())
    assert digest.hexdigest() == CAPTIONS


def test_a_caption_names_what_the_telling_holds():
    for index in range(SCENES):
        scene = Scene(1, index)
        for variant in range(3):
            assert attributes(scene.caption(variant)) == attributes_of(scene.telling(variant))


def test_a_telling_says_what_is_there_and_leaves_things_out():
    partial = 0
    for index in range(SCENES):
        scene = Scene(2, index)
        telling, whole = scene.telling(), scene.everything()
        assert attributes_of(telling) <= attributes_of(whole)
        there = [set(figure) for figure in whole.figures]
        assert all(any(set(one) - {None} <= found for found in there) for one in telling.figures)
        partial += attributes_of(telling) < attributes_of(whole)
    assert partial > SCENES / 2


def test_a_description_names_everything_in_the_words_of_a_caption():
    openings = set()
    for index in range(SCENES):
        scene = Scene(4, index)
        for variant in (0, 1):
            words = scene.description(variant)
            assert attributes(words) == attributes_of(scene.everything())
            assert attributes(words).total() == 7
            assert any(light in words for light in SYNONYMS[LIGHTS[scene.light]])
            (before, relation, after) = told_apart(words)
            first = attributes_of(Telling((Named(*scene.first),), None, None, None))
            second = attributes_of(Telling((Named(*scene.second),), None, None, None))
            if relation == RELATIONS[scene.relation]:
                assert (before, after & second) == (first, second)
            else:
                assert relation == OPPOSITE[RELATIONS[scene.relation]]
                assert (before, after & first) == (second, first)
            openings.add(words.split()[0])
    assert {"a", "there", "we"} <= openings


def told_apart(words: str) -> tuple[Counter[str], str, Counter[str]]:
    """Return what words name before a relation, the relation, and what they name after it."""
    spoken = {one: name for name in RELATIONS for one in SYNONYMS[name]}
    longest = sorted(spoken, key=len, reverse=True)
    found = re.fullmatch(rf"(.+?) ({'|'.join(longest)}) (.+)", words)
    assert found
    return attributes(found[1]), spoken[found[2]], attributes(found[3])


def test_every_answer_is_true_of_the_telling_and_of_the_scene():
    count = 0
    for question, telling, scene in every_question():
        assert question.answer == right(question, telling), question
        if question.task not in ("presence", "count"):
            # Words that tell two figures apart do so among all that is there.
            assert question.answer == right(question, scene.everything()), question
        elif len(telling.figures) == 2:
            assert question.answer == right(question, scene.everything()), question
        count += 1
    assert count > 10 * SCENES


def test_all_tasks_occur_once_and_presence_with_a_yes_and_a_no():
    for index in range(200):
        found = asked(Scene(6, index).everything(), index)
        tasks = Counter(question.task for question in found)
        assert tasks["presence"] == 2
        assert {one.answer for one in found if one.task == "presence"} == {"yes", "no"}
        assert all(count == 1 for task, count in tasks.items() if task != "presence")
        assert {"background", "count"} <= set(tasks) <= set(QUESTION_TASKS)
    seen = {question.task for question, _, _ in every_question()}
    assert seen == set(QUESTION_TASKS)


def test_answers_take_every_value_and_absent_things_are_often_made_of_what_is_there():
    answers: dict[str, set[str]] = {task: set() for task in QUESTION_TASKS}
    absent = mixed = 0
    for question, telling, _ in every_question():
        answers[question.task].add(question.answer)
        if question.task == "presence" and question.answer == "no":
            words = set(question.prompt.removesuffix("?").split()[3:]) - {"one"}
            there = {value for figure in told(telling) for value in figure.values()}
            absent += 1
            mixed += words <= there
    assert answers["colour"] == set(COLOURS)
    assert answers["shape"] == set(SHAPES)
    assert answers["size"] == set(SIZES)
    assert answers["background"] == set(BACKGROUNDS)
    assert answers["relation"] == {"left", "right", "above", "below"}
    assert answers["count"] == {"0", "1", "2"}
    assert 0.3 < mixed / absent < 0.7


ONE, OTHER = Named(0, 1, 2), Named(3, 4, 0)


@pytest.mark.parametrize(
    ("telling", "tasks"),
    [
        (Telling((ONE,), None, None, 1), set()),
        (Telling((ONE,), None, 2, None), {"background"}),
        (Telling((ONE, OTHER), None, None, None), set(QUESTION_TASKS) - {"relation", "background"}),
        (
            Telling((ONE._replace(colour=None), OTHER), 0, None, None),
            {"colour", "shape", "size", "relation", "count"},
        ),
        (Telling((Named(None, None, None), OTHER), 0, None, None), set()),
        (Telling((Named(None, 1, None), Named(None, 1, None)), 0, None, None), {"count"}),
    ],
)
def test_nothing_is_asked_that_the_telling_leaves_out(telling: Telling, tasks: set[str]):
    found: set[str] = set()
    for key in range(60):
        found |= {question.task for question in asked(telling, key)}
    assert found == tasks


def test_an_attribute_is_not_told_by_itself():
    """Figures of one shape and size, apart in colour alone: their colour cannot be asked."""
    telling = Telling((Named(0, 1, 2), Named(0, 2, 2)), 0, 0, 0)
    for key in range(40):
        assert "colour" not in {question.task for question in asked(telling, key)}


def test_the_generator_alone_decides():
    telling = Scene(0, 3).everything()
    assert asked(telling, 1) == asked(telling, 1)
    assert len({tuple(asked(telling, key)) for key in range(20)}) > 10


def test_attributes_take_synonyms_as_one_and_count_twice():
    found = attributes("a tiny violet plus sign beneath a little purple disc against polka dots")
    assert found == Counter(small=2, purple=2, cross=1, circle=1, dotted=1)
    assert attributes("nothing of it; a redder boxes squared") == Counter()
