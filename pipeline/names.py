"""What the two sides are called: text and image, or the modalities that a configuration names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

_WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 16
_PLURALS = {"text": "texts", "image": "images"}


@dataclass(frozen=True, kw_only=True)
class Names:
    """What people read for the side that is moved and the side that it is moved to.

    The keys `text:` and `image:` of the configuration say where they lie, whatever they are called.

    Raises:
        ValueError: for a name that is no short lowercase word, or one name for both.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }

    source: str = "text"
    """What `text:` holds, the side that is moved: a lowercase word such as audio."""
    target: str = "image"
    """What `image:` holds, the side whose cloud it is moved into."""

    def __post_init__(self) -> None:
        for side, name in asdict(self).items():
            if not isinstance(name, str) or len(name) > _LONGEST or not _WORD.fullmatch(name):
                raise ValueError(
                    f"{side} is {name!r:.60}; a name is a lowercase word such as audio, of up to "
                    f"{_LONGEST} letters, digits and hyphens"
                )
        if self.source == self.target:
            raise ValueError(
                f"source and names.target are both {self.source}; give each a name of its own"
            )

    @classmethod
    def from_mapping(cls, said: object) -> Names:
        """Return the names that `dataclasses.asdict` made plain values of, the defaults of None.

        Raises:
            ValueError: if they are none.
        """
        if said is None:
            return cls()
        if not isinstance(said, Mapping) or said.keys() != {"source", "target"}:
            raise ValueError("names are not an object of source and target")
        try:
            return cls(**said)
        except ValueError as error:
            raise ValueError(f"names.{error}") from None

    @property
    def default(self) -> bool:
        """Whether these are text and image."""
        return self == Names()

    @property
    def one_source(self) -> str:
        """What a row of the source is called: text, or audio embedding."""
        return self.source if self.source in _PLURALS else f"{self.source} embedding"

    @property
    def one_target(self) -> str:
        """What a row of the target is called: image, or audio embedding."""
        return self.target if self.target in _PLURALS else f"{self.target} embedding"

    @property
    def sources(self) -> str:
        """What rows of the source are called: texts, or audio embeddings."""
        return _PLURALS.get(self.source, f"{self.source} embeddings")

    @property
    def targets(self) -> str:
        """What rows of the target are called: images, or audio embeddings."""
        return _PLURALS.get(self.target, f"{self.target} embeddings")

    def of(self, side: Literal["text", "image"]) -> str:
        """Return the name of the side that a section of the configuration describes."""
        return self.source if side == "text" else self.target

    def key(self, side: Literal["text", "image"], key: str) -> str:
        """Return a key of a side's section, with the side's name where that is another word."""
        return f"{side}.{key}" + ("" if self.default else f" (the {self.of(side)} side)")

    def instead(self, label: str) -> str:
        """Return a label of a text and an image side with these names for the two words."""
        found = {"text": self.source, "image": self.target}
        return re.sub(r"\b(text|image)\b", lambda match: found[match[0]], label)


DEFAULT_NAMES = Names()
"""Text and image."""

EITHER = Names(source="source", target="target")
"""What the sides are called where runs of other modalities stand side by side."""
