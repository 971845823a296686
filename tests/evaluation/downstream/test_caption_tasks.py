"""Tasks on captioned embeddings: parts that share nothing, questions that are true."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.downstream.caption_tasks import PRESENCE, caption_data
from pipeline.evaluation.downstream.captioned_pairs import CaptionedPairs
from pipeline.evaluation.downstream.samples import DESCRIBE, DownstreamData, Sample
from tests.evaluation.downstream.samples import tiny_settings

WORDS = (
    *("horse", "river", "mountain", "kitchen", "bicycle", "garden", "window", "bridge"),
    *("étoile", "lantern", "forest", "castle", "rocket", "teapot", "pillow", "anchor"),
)


def pairs(rows: int = 200, *, each: int = 1) -> CaptionedPairs:
    """Return pairs whose captions have two words of sixteen; `each` captions share a picture."""
    generator = np.random.default_rng(3)
    captions = []
    for row in range(rows):
        first, second = generator.choice(len(WORDS), 2, replace=False)
        captions.append(f"A {WORDS[first].title()} and the {WORDS[second]}, with {row} of them.")
    image = torch.from_numpy(generator.normal(size=(-(-rows // each), 6)).astype(np.float32))
    image = image.repeat_interleave(each, 0)[:rows]
    shuffled = torch.from_numpy(generator.permutation(rows))
    text = torch.from_numpy(generator.normal(size=(rows, 6)).astype(np.float32))
    return CaptionedPairs(
        "pairs.npz",
        torch.nn.functional.normalize(image)[shuffled],
        torch.nn.functional.normalize(text)[shuffled],
        [captions[row] for row in shuffled.tolist()],
    )


def rows_of(part: Tensor, whole: Tensor) -> list[set[int]]:
    return [set((whole == row).all(1).nonzero().flatten().tolist()) for row in part]


def parts(data: DownstreamData, of: CaptionedPairs) -> list[set[int]]:
    """Return the rows of text, image and test; those of one picture all together."""
    return [
        set().union(*rows_of(part, whole))
        for part, whole in (
            (data.text.embeddings, of.text),
            (data.image.embeddings, of.image),
            (data.test.embeddings, of.image),
        )
    ]


def test_no_row_stands_in_two_parts_and_all_are_used():
    found = pairs()
    data = caption_data(found, tiny_settings(), 0)
    text, image, test = parts(data, found)
    assert not text & image
    assert not text & test
    assert not image & test
    assert len(text | image | test) == 200
    assert (len(text), len(image), len(test)) == (100, 50, 50)
    assert torch.equal(data.fitting.text, data.text.embeddings)
    assert torch.equal(data.fitting.image, data.image.embeddings)


def test_captions_of_one_picture_stay_in_one_part():
    found = pairs(300, each=5)
    pictures = [row.numpy().tobytes() for row in found.image]
    data = caption_data(found, tiny_settings(), 0)
    text, image, test = ({pictures[row] for row in part} for part in parts(data, found))
    assert not text & image
    assert not text & test
    assert not image & test
    assert len(data.test.embeddings) == 75
    assert len(data.text.embeddings) > 130
    assert len(data.image.embeddings) > 65


def test_settings_limit_the_parts():
    settings = tiny_settings(captions=12, real_images=12, test_images=9)
    data = caption_data(pairs(), settings, 0)
    assert len(data.text.embeddings) == 24
    assert len(data.image.embeddings) == 12
    assert len(data.test.embeddings) == len(data.test.references) == 9


def test_a_seed_decides_the_parts_and_the_questions():
    one, same, other = (caption_data(pairs(), tiny_settings(), seed) for seed in (0, 0, 1))
    assert torch.equal(one.test.embeddings, same.test.embeddings)
    assert (one.text.instructions, one.test.questions) == (
        same.text.instructions,
        same.test.questions,
    )
    assert not torch.equal(one.test.embeddings, other.test.embeddings)


def check(samples: list[Sample], captions: list[str]) -> None:
    """Assert that presence is asked truly, once with yes and once with no for each row."""
    answers: dict[int, list[str]] = {}
    for sample in samples:
        found = re.fullmatch(r"does the picture go with the word (\w+)\?", sample.prompt)
        assert found
        assert found[1] in WORDS
        there = found[1] in captions[sample.row].lower()
        assert sample.answer == ("yes" if there else "no")
        assert sample.task == PRESENCE
        answers.setdefault(sample.row, []).append(sample.answer)
    assert all(answer == ["yes", "no"] for answer in answers.values())
    assert len(answers) == len(captions)


def test_questions_are_true_of_the_captions_of_their_rows():
    found = pairs()
    data = caption_data(found, tiny_settings(), 0)
    for material, whole in ((data.text, found.text), (data.image, found.image)):
        captions = [found.captions[min(rows)] for rows in rows_of(material.embeddings, whole)]
        assert [sample.answer for sample in material.captions] == captions
        assert {sample.prompt for sample in material.captions} == {DESCRIBE}
        asked = [sample for sample in material.instructions if sample.task == PRESENCE]
        described = [sample for sample in material.instructions if sample.task != PRESENCE]
        assert described == list(material.captions)
        check(asked, captions)
    captions = [found.captions[min(rows)] for rows in rows_of(data.test.embeddings, found.image)]
    check(list(data.test.questions), captions)
    for caption, reference in zip(captions, data.test.references, strict=True):
        assert reference.total() == 2
        assert all(word in caption.lower() for word in reference)


def test_a_caption_names_the_shared_words_that_it_has_once_each():
    named = caption_data(pairs(), tiny_settings(), 0).test.named
    assert named("RIVER river, an étoile; with and rivers") == Counter(river=1, étoile=1)
    assert named("nothing that is known") == Counter()


def test_words_of_most_captions_are_not_asked_about():
    found = pairs()
    same = replace(found, captions=[f"there stands {one}" for one in found.captions])
    data = caption_data(same, tiny_settings(), 0)
    assert data.test.named("there stands with a river") == Counter(["river"])


def test_words_of_the_test_alone_are_not_asked_about():
    """What is asked is decided by the captions that are trained on."""
    found = pairs()
    test = parts(caption_data(found, tiny_settings(), 0), found)[2]
    changed = [
        f"{caption} zeppelin" if row in test else caption
        for row, caption in enumerate(found.captions)
    ]
    data = caption_data(replace(found, captions=changed), tiny_settings(), 0)
    assert data.test.named("zeppelin river") == Counter(["river"])


@pytest.mark.parametrize("rows", [0, 39])
def test_too_few_rows_are_refused(rows: int):
    few = pairs(60)
    few = CaptionedPairs("few.npz", few.image[:rows], few.text[:rows], few.captions[:rows])
    with pytest.raises(ValueError, match=rf"few\.npz has {rows} captioned pairs.* 40"):
        caption_data(few, tiny_settings(), 0)
    assert len(caption_data(pairs(40), tiny_settings(), 0).test.embeddings) == 10


def test_captions_that_share_no_words_are_refused():
    found = pairs(60)
    letters = "abcdefghijklmnopqrstuvwxyz"
    lonely = [f"{letters[row % 26]}{letters[row // 26]}word" for row in range(60)]
    for captions in (lonely, ["the same words everywhere"] * 60, ["a b c 1234"] * 60):
        with pytest.raises(ValueError, match=r"pairs\.npz have no two words"):
            caption_data(replace(found, captions=captions), tiny_settings(), 0)


def test_one_picture_alone_is_refused():
    found = pairs(60)
    alone = replace(found, image=found.image[:1].repeat(60, 1))
    with pytest.raises(ValueError, match=r"pairs\.npz have no two words"):
        caption_data(alone, tiny_settings(), 0)
