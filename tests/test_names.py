"""What the sides are called: which names there can be, and the words made of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from pipeline.config import ConfigError, RunConfig, parse_config
from pipeline.names import Names

AUDIO = Names(source="audio", target="text")


def test_text_and_image_by_default():
    assert RunConfig().names == Names() == Names(source="text", target="image")
    assert Names().default
    assert not AUDIO.default


def test_words_of_the_default():
    names = Names()
    assert (names.one_source, names.sources) == ("text", "texts")
    assert (names.one_target, names.targets) == ("image", "images")
    assert names.key("text", "path") == "text.path"


def test_words_of_other_modalities():
    assert (AUDIO.one_source, AUDIO.sources) == ("audio embedding", "audio embeddings")
    assert (AUDIO.one_target, AUDIO.targets) == ("text", "texts")
    assert (AUDIO.of("text"), AUDIO.of("image")) == ("audio", "text")
    assert AUDIO.key("text", "path") == "text.path (the audio side)"
    assert AUDIO.key("image", "path") == "image.path (the text side)"


def test_a_label_says_both_names_at_once():
    assert AUDIO.instead("moments of image and text") == "moments of text and audio"
    assert AUDIO.instead("text-embeddings of contexts") == "audio-embeddings of contexts"
    assert Names().instead("moments of image and text") == "moments of image and text"


@pytest.mark.parametrize("name", ["a", "point-cloud", "mp3", "x" * 16])
def test_names_that_can_be(name: str):
    assert parse_config({"names": {"source": name}}).names == Names(source=name, target="image")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"source": "Audio"}, "names.source is 'Audio'; a name is a lowercase word such as audio"),
        ({"target": "two words"}, "names.target is 'two words'; a name is a lowercase word"),
        ({"target": ""}, "names.target is ''"),
        ({"target": "-a"}, "names.target is '-a'"),
        ({"target": "a\n"}, "names.target is 'a\\n'"),
        ({"source": "x" * 17}, "of up to 16 letters, digits and hyphens"),
        ({"source": "image"}, "names.source and names.target are both image; give each a name"),
        ({"source": 3}, "names.source"),
        ({"source": None}, "names.source"),
        ({"sources": "audio"}, "unknown key names.sources; did you mean names.source?"),
    ],
)
def test_names_that_cannot_be(names: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        parse_config({"names": names})
    assert said in str(caught.value)


def test_names_are_read_back():
    assert Names.from_mapping(asdict(AUDIO)) == AUDIO
    assert Names.from_mapping(None) == Names()
    for wrong in ("audio", {"source": "audio"}, {**asdict(AUDIO), "more": "x"}, ["audio", "text"]):
        with pytest.raises(ValueError, match="names are not an object of source and target"):
            Names.from_mapping(wrong)
    with pytest.raises(ValueError, match=r"names\.source is 3"):
        Names.from_mapping({"source": 3, "target": "text"})
