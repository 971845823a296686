"""What a format is: the files that one shard becomes, and those that stand over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.export.conversations import (
    GIVEN_COLUMN,
    ConversationError,
    ConversationSettings,
    Turn,
    checked_turns,
    templated,
)
from pipeline.export.source import Shard
from pipeline.names import DEFAULT_NAMES

CONVERSATIONS = "conversations"
Pieces = Callable[[], Iterable[bytes]]


@dataclass(frozen=True, kw_only=True)
class PartFiles:
    """What one shard becomes: files by their path in the target.

    `entries` are the shard's rows in a JSON list that all parts share, the commas between them
    included; `notes` is what the index will say of the part (JSON values).
    """

    files: dict[str, bytes]
    entries: bytes | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A format: its parts are a pure function of the shard, the number and the settings."""

    settings: ConversationSettings = field(default_factory=ConversationSettings)
    seed: int = 0
    target: str = DEFAULT_NAMES.target
    """What the embeddings stand in for."""

    name: ClassVar[str]
    has_conversations: ClassVar[bool] = False
    """Whether it says what `conversations` settings do."""
    title: ClassVar[str]
    reading: ClassVar[str]
    """How its files are read, for the card: Markdown."""

    def check(self, schema: pa.Schema) -> None:
        """Raise ValueError if a dataset of these columns cannot be written so."""
        if self.has_conversations and self.given_column(schema) is not None:
            column = schema.field(self.settings.column or "")
            if not _holds_conversations(column.type):
                raise ValueError(
                    f"conversations.column: {column.name} holds {column.type}, not JSON text or a "
                    "list of structs of from and value; name another column, or null"
                )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return the files of part `number` of `parts`.

        Raises:
            ValueError: if a row cannot be written so, naming shard and row.
        """
        raise NotImplementedError

    def index(
        self, notes: Sequence[dict[str, Any]], entries: Pieces
    ) -> Iterator[tuple[str, Pieces]]:
        """Yield the files over all parts: path, and what gives the pieces of their content.

        `notes` are the parts', `entries` gives the entries of the shared JSON list, part by part.
        """
        return iter(())

    def given_column(self, schema: pa.Schema) -> str | None:
        """Return the column of given conversations, None where templates are taken.

        Raises:
            ValueError: if a column is named that the dataset lacks.
        """
        column = self.settings.column
        if column is None or column in schema.names:
            return column
        if column == GIVEN_COLUMN:
            return None
        raise ValueError(
            f"conversations.column: the dataset has no column {column}; name one of "
            f"text.passed_through, or null for templates"
        )

    def conversations(
        self, shard: Shard, ids: Sequence[str], texts: Sequence[str | None]
    ) -> Iterator[list[Turn] | None]:
        """Yield the rows' conversations, None where there is neither a given one nor a caption.

        Raises:
            ValueError: for a given one that cannot be trained on, unless templates replace it, and
                where these ask about images that the embeddings do not stand in for.
        """
        column = self.given_column(shard.schema)
        given = None if column is None else shard.values(column)
        for row, (identifier, text) in enumerate(zip(ids, texts, strict=True)):
            turns = None if given is None else self._given(given[row], shard, identifier)
            if turns is None and text is not None:
                self._check_templates()
                turns = templated(self.settings, self.seed, identifier, text)
            yield turns

    def _check_templates(self) -> None:
        templates = self.settings.templates
        if self.target != DEFAULT_NAMES.target and templates == ConversationSettings().templates:
            raise ValueError(
                f"the embeddings stand in for {self.target}, but the templates of conversations "
                "ask about images: set conversations.templates, or name a column of given ones by "
                "conversations.column"
            )

    def _given(self, value: object, shard: Shard, identifier: str) -> list[Turn] | None:
        try:
            return checked_turns(value, pretraining=self.settings.pretraining)
        except ConversationError as error:
            if self.settings.invalid == "template":
                return None
            raise ValueError(
                f"{shard.where}: the conversation of id {identifier!r} cannot be trained on: "
                f"{error}; correct it, or set conversations.invalid=template"
            ) from None


def compact(value: object) -> bytes:
    """Return a value as one line of JSON in UTF-8."""
    return _COMPACT(value).encode()


_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def json_list(entries: Pieces) -> Pieces:
    """Return what gives the pieces of a JSON list, from the entries of each part."""

    def pieces() -> Iterator[bytes]:
        between = b"[\n"
        for piece in entries():
            yield between
            yield piece
            between = b",\n"
        yield b"\n]\n"

    return pieces


def _holds_conversations(kind: pa.DataType) -> bool:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    turn = kind.value_type
    return pa.types.is_struct(turn) and {"from", "value"} <= {one.name for one in turn}
