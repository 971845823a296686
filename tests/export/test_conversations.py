"""Conversations: templates drawn by id and seed, given ones checked."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError, parse_config
from pipeline.export.conversations import (
    ConversationError,
    ConversationSettings,
    Exchange,
    checked_turns,
    templated,
)

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "That."}


def test_templates_are_drawn_by_id_and_seed():
    settings = ConversationSettings()
    drawn = [templated(settings, 0, f"id-{row}", "a cat") for row in range(2000)]
    assert drawn == [templated(settings, 0, f"id-{row}", "a cat") for row in range(2000)]
    counts = Counter(human["value"] for human, _ in drawn)
    assert len(counts) == len(settings.templates)
    assert min(counts.values()) > 100
    other = [templated(settings, 1, f"id-{row}", "a cat") for row in range(2000)]
    assert other != drawn
    assert {gpt["value"] for _, gpt in drawn} == {"a cat"}


def test_the_default_templates_hold_one_image_first():
    for exchange in ConversationSettings().templates:
        assert exchange.human.startswith("<image>\n")
        assert exchange.human.count("<image>") == 1
        assert exchange.gpt == "{text}"


@given(st.text().filter(lambda text: "<image>" not in text))
def test_captions_are_taken_literally(text):
    settings = ConversationSettings(
        templates=(Exchange(human="Is it {text}? {other} {0}", gpt="{text}|{text}"),)
    )
    human, gpt = templated(settings, 0, "id", text)
    assert human == {"from": "human", "value": f"<image>\nIs it {text}? {{other}} {{0}}"}
    assert gpt == {"from": "gpt", "value": f"{text}|{text}"}


def test_the_image_token_of_a_caption_is_not_one():
    turns = templated(ConversationSettings(), 0, "id", "see <image> and <image>")
    assert turns[1]["value"] == "see (image) and (image)"
    assert sum(turn["value"].count("<image>") for turn in turns) == 1


def test_given_turns_are_passed_on_as_they_are():
    turns = [{**QUESTION, "weight": 2}, ANSWER]
    assert checked_turns(turns) == turns
    assert checked_turns(json.dumps(turns)) == turns
    end = {"from": "human", "value": "What?\n<image>"}
    assert checked_turns([end, ANSWER]) == [end, ANSWER]


def test_the_image_is_put_first_where_it_is_missing():
    bare = {"from": "human", "value": "What?"}
    assert checked_turns([bare, ANSWER, bare, ANSWER]) == [QUESTION, ANSWER, bare, ANSWER]
    assert bare["value"] == "What?"


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (None, "it is null"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ({}, "it is no list of turns"),
        ("[1, 2]", "it is no list of turns"),
        ([], "it has 0 turns"),
        ([QUESTION], "it has 1 turns"),
        ([QUESTION, ANSWER, QUESTION], "it has 3 turns"),
        ([ANSWER, QUESTION], "turn 1 is from 'gpt'"),
        ([QUESTION, QUESTION], "turn 2 is from 'human'"),
        ([{"value": "x"}, ANSWER], "turn 1 is from None"),
        ([QUESTION, {"from": "gpt", "value": None}], "turn 2 has no text in value"),
        ([QUESTION, {"from": "gpt", "value": "<image>"}], "stands elsewhere than once"),
        ([{"from": "human", "value": "<image><image>"}, ANSWER], "stands elsewhere than once"),
    ],
)
def test_what_cannot_be_trained_on(turns, said):
    with pytest.raises(ConversationError, match=said):
        checked_turns(turns)


def test_pretraining_wants_two_turns():
    assert checked_turns([QUESTION, ANSWER], pretraining=True) == [QUESTION, ANSWER]
    four = [QUESTION, ANSWER, {"from": "human", "value": "And?"}, ANSWER]
    assert checked_turns(four) == four
    with pytest.raises(ConversationError, match="wants two"):
        checked_turns(four, pretraining=True)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"templates": []}, "conversations.templates must hold at least one exchange"),
        ({"templates": [{"human": "What?", "gpt": "A cat."}]}, "templates need {text}"),
        ({"templates": [{"human": "{text}", "gpt": " "}]}, "templates need a gpt that is not"),
        ({"templates": [{"human": "What?", "gpt": "<image>{text}"}]}, "may hold <image> once"),
        ({"templates": [{"human": "What?"}]}, "conversations.templates.0.gpt"),
        ({"templates": [{"human": "?", "gpt": "{text}", "x": "y"}]}, "unknown key"),
        ({"column": ""}, "conversations.column must name a column"),
        ({"invalid": "drop"}, "conversations.invalid"),
        ({"colum": "c"}, "unknown key conversations.colum; did you mean conversations.column?"),
        ({"pretraining": 1}, "conversations.pretraining"),
    ],
)
def test_settings_are_validated(section, said):
    with pytest.raises(ConfigError) as caught:
        parse_config({"conversations": section})
    assert said in str(caught.value)


def test_settings_come_from_the_configuration():
    assert parse_config({}).conversations == ConversationSettings()
    told = {"templates": [{"human": "What?", "gpt": "{text}"}], "column": None}
    found = parse_config({"conversations": told}).conversations
    assert found.templates == (Exchange(human="What?", gpt="{text}"),)
    assert found.column is None
