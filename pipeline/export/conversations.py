"""Conversations: what a row is asked and answers, from templates or from a column of its own.

This file imports nothing heavy, since the run configuration has its settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

IMAGE_TOKEN = "<image>"
GIVEN_COLUMN = "conversations"
_TEXT = "{text}"
_STRICT = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}
_SPEAKERS = ("human", "gpt")

Turn = dict[str, Any]
"""`from` (human or gpt) and `value`, further keys as they were given."""


class ConversationError(ValueError):
    """A given conversation cannot be trained on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its answer; `{text}` stands for the row's caption, taken literally."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    human: str
    """What the human says."""
    gpt: str
    """What the model is to answer."""

    def __post_init__(self) -> None:
        if _TEXT not in self.human + self.gpt:
            raise ValueError(
                f"templates need {_TEXT} in human or gpt, where the caption goes; "
                f"{self.gpt!r} has none"
            )
        if not self.gpt.strip():
            raise ValueError("templates need a gpt that is not blank: it is what is learnt")
        if IMAGE_TOKEN in self.gpt or self.human.count(IMAGE_TOKEN) > 1:
            raise ValueError(f"templates may hold {IMAGE_TOKEN} once, in human; it is one image")


_PROMPTS = (
    "Describe the picture in one short sentence.",
    "What does this image show?",
    "Write a brief caption for this photo.",
    "Sum up what you see here in a few words.",
    "Give a short and clear account of the image.",
    "Tell me in brief what is in the picture.",
    "What is the main content of this image?",
    "Provide a concise description of what is shown.",
    "Say in plain words what this picture presents.",
    "How would you caption this image?",
)


def _default_templates() -> tuple[Exchange, ...]:
    return tuple(Exchange(human=f"{IMAGE_TOKEN}\n{prompt}", gpt=_TEXT) for prompt in _PROMPTS)


@dataclass(frozen=True, kw_only=True)
class ConversationSettings:
    """The `conversations` section: how exported rows become samples of instruction tuning."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    column: str | None = GIVEN_COLUMN
    """Passed-through column of given conversations (JSON text, or a list of `from` and `value`).
    A dataset without the default column gets templates; null takes templates always."""
    invalid: Literal["fail", "template"] = "fail"
    """Whether a given conversation that is null or cannot be trained on ends the export or is
    replaced by a template."""
    pretraining: bool = False
    """Demand exactly two turns, a question and an answer, of every given conversation too."""
    templates: tuple[Exchange, ...] = _default_templates()
    """Questions and answers, of which each row gets one, drawn by its id and the seed."""

    def __post_init__(self) -> None:
        if not self.templates:
            raise ValueError("templates must hold at least one exchange of human and gpt")
        if self.column == "":
            raise ValueError("column must name a column, or be null")


def templated(settings: ConversationSettings, seed: int, identifier: str, text: str) -> list[Turn]:
    """Return the two turns that a caption becomes.

    An image token that the caption itself holds is written `(image)`: trainers put an embedding
    at each token.
    """
    drawn = hashlib.blake2b(f"{seed}/{identifier}".encode(), digest_size=8).digest()
    chosen = settings.templates[int.from_bytes(drawn) % len(settings.templates)]
    caption = _without_token(text)
    return [
        {"from": "human", "value": _with_image(chosen.human.replace(_TEXT, caption))},
        {"from": "gpt", "value": chosen.gpt.replace(_TEXT, caption)},
    ]


def checked_turns(value: object, *, pretraining: bool = False) -> list[Turn]:
    """Return a given conversation as it is, `<image>` put first in it if it has none.

    `value` is JSON text or a list of mappings with `from` and `value`.

    Raises:
        ConversationError: if it is null, or cannot be trained on.
    """
    turns = _parsed(value)
    if len(turns) < 2 or len(turns) % 2:
        raise ConversationError(f"it has {len(turns)} turns, not pairs of human and gpt")
    if pretraining and len(turns) != 2:
        raise ConversationError(f"it has {len(turns)} turns; conversations.pretraining wants two")
    for position, turn in enumerate(turns):
        speaker = _SPEAKERS[position % 2]
        if turn.get("from") != speaker:
            raise ConversationError(f"turn {position + 1} is from {turn.get('from')!r}")
        said = turn.get("value")
        if not isinstance(said, str):
            raise ConversationError(f"turn {position + 1} has no text in value")
        if IMAGE_TOKEN in said and (position or said.count(IMAGE_TOKEN) > 1):
            raise ConversationError(f"{IMAGE_TOKEN} stands elsewhere than once in the first turn")
    return [{**turns[0], "value": _with_image(turns[0]["value"])}, *turns[1:]]


def _parsed(value: object) -> list[Turn]:
    if value is None:
        raise ConversationError("it is null")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ConversationError("it is not JSON") from None
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise ConversationError("it is no list of turns")
    return [dict(turn) for turn in value]


def _with_image(said: str) -> str:
    return said if IMAGE_TOKEN in said else f"{IMAGE_TOKEN}\n{said}"


def _without_token(text: str) -> str:
    return text.replace(IMAGE_TOKEN, "(image)")
