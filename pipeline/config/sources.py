"""The sections of the two sides: where rows come from and what is read of them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Section
from pipeline.formats import Format

DEMO_CAPTIONS = "demo:captions"
DEMO_IMAGES = "demo:images"
"""Paths that stand for the packaged world's corpora; a run writes them beside its output."""

_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class HubSection(Section):
    """A Hugging Face data set, for `format: datasets`; `path` is its name, or a folder of files."""

    name: str | None = None
    """Configuration of the data set, where it has several."""
    revision: str | None = None
    """Commit, tag or branch; a commit is the same every night."""
    split: str = "train"
    """Split to read."""
    streaming: bool = True
    """Fetch rows as they are read, instead of the whole data set first."""


def check_hub(found: Format, hub: HubSection) -> None:
    """Raise ValueError where a side says what to read of a data set that it is none of."""
    if found != "datasets" and hub != HubSection():
        raise ValueError("hub is for the format datasets; set that, or leave hub out")


class TextCorpus(Section):
    """Captions, or text embeddings made elsewhere, in files of one kind."""

    path: str | None = None
    """File, folder, glob or URL; `demo:captions` for the packaged world."""
    format: Format = "auto"
    """Format of the files; auto goes by their endings, and knows folders of clip-retrieval."""
    id_column: str = "id"
    """Column of row ids; derived from the content when the input has none. In WebDataset tars the
    key, or else this field of the .json."""
    text_column: str = "text"
    """Column of the captions; in WebDataset tars a field of the .json or an extension (txt)."""
    embedding_column: str | None = None
    """Column of precomputed embeddings (array of .npz, tensor of .safetensors, key of .pkl); when
    set, nothing is encoded."""
    ids_path: str | None = None
    """For one .npy, .npz or .safetensors: file of ids, one a line, or a .npy of them."""
    hub: HubSection = HubSection()

    @model_validator(mode="after")
    def _check_hub(self) -> Self:
        check_hub(self.format, self.hub)
        return self


class NamedSource(TextCorpus):
    """One of several sources; its name goes to the column `source`."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the mixture beside the others' weights; null takes all rows."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Most rows of it; which ones is drawn from the seed."""


class TextSource(TextCorpus):
    """Source side: captions, or text embeddings made elsewhere."""

    sources: dict[str, NamedSource] = Field(default_factory=dict)
    """Several sources by name, mixed, instead of a path."""
    passed_through: tuple[str, ...] = ()
    """Further columns copied to the output."""
    unicode: Literal["none", "NFC", "NFKC"] = "none"
    """Normal form that captions are brought to before anything else."""

    over_long: Literal["truncate", "split", "reject"] = "truncate"
    """A caption longer than the encoder's context is cut there, encoded in parts whose mean stands
    for it, or quarantined."""

    @model_validator(mode="after")
    def _check_sources(self) -> TextSource:
        if not self.sources:
            return self
        fields = TextCorpus.model_fields
        own = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if own:
            raise ValueError(
                f"{own[0]} stands beside text.sources; set it in each source "
                f"(text.sources.NAME.{own[0]})"
            )
        for name, source in self.sources.items():
            if not _SOURCE_NAME.fullmatch(name):
                raise ValueError(
                    f"sources: the name {name!r} is not made of letters, digits, - and _ alone"
                )
            if source.path is None:
                raise ValueError(f"sources.{name}.path is not set")
        weighted = [name for name, source in self.sources.items() if source.weight is not None]
        if weighted and len(weighted) < len(self.sources):
            without = sorted(set(self.sources) - set(weighted))
            raise ValueError(
                f"sources.{without[0]} has no weight while {weighted[0]} has; give all or none"
            )
        if "source" in self.passed_through:
            raise ValueError(
                "passed_through: the column source holds the sources' names; leave it out"
            )
        return self


class ImageSource(Section):
    """Target side: images, or image embeddings made elsewhere."""

    path: str | None = None
    """File, folder, glob or URL; `demo:images` for the packaged world."""
    format: Format = "auto"
    """Format of the files; auto goes by their endings, and knows folders of clip-retrieval."""
    id_column: str = "id"
    """Column of row ids; of image files the name below the folder, in WebDataset tars the key, or
    else this field of the .json."""
    image_column: str = "image"
    """Column of encoded image bytes (PNG, JPEG, WebP); in WebDataset tars with several images a
    sample the extension of one (jpg)."""
    embedding_column: str | None = None
    """Column of precomputed embeddings (array of .npz, tensor of .safetensors, key of .pkl); when
    set, nothing is encoded."""
    ids_path: str | None = None
    """For one .npy, .npz or .safetensors: file of ids, one a line, or a .npy of them."""
    hub: HubSection = HubSection()

    @model_validator(mode="after")
    def _check_hub(self) -> Self:
        check_hub(self.format, self.hub)
        return self
