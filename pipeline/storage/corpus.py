"""What the user points at: a corpus, its files, and the unit of work it is cut into."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow as pa

from pipeline import schema
from pipeline.formats import ARRAY_ENDINGS, ENDINGS, FORMATS, Format, file_format
from pipeline.schema import SOURCE
from pipeline.storage import locations
from pipeline.storage.locations import FileEntry, redact_url

MAX_TEXT_BYTES = 65_536
_ADDED = frozenset({"unicode", "unique_texts", "parts", "seed"})
_SAVED = frozenset({"dataset_dict.json", "state.json"})
"""What Hugging Face's save_to_disk leaves in its folders."""
_UNFIT_FOR_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RESERVED = frozenset(
    {schema.ID, schema.TEXT, schema.EMBEDDING, schema.REJECT, schema.ENVELOPE, "row", "content"}
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A corpus among several: its name, its share beside the others', and the most rows of it.

    A `weight` of None takes all its rows, up to `max_rows`.
    """

    name: str
    corpus: Corpus
    weight: float | None = None
    max_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where rows come from and which columns to read.

    `path` is a file, a folder (its files of known endings), a glob, one of our dataset folders, or
    one of clip-retrieval's. `embedding_column` set means that rows carry embeddings (implied where
    a format holds nothing else); of .npz, .safetensors and .pkl it names the array, tensor or key.
    `ids_path` belongs to one .npy, .npz or .safetensors: a text file, one id a line, or a .npy of
    strings or integers; without it NAME.ids.txt or NAME_ids.npy beside the file is taken, else the
    array `id_column`, `id` or `ids` in it, else ids are derived. A caption of more than
    `max_text_bytes` bytes is rejected. `unicode` is the normal form that captions are
    brought to. With `unique_texts` a caption that an earlier row has, but for case, spaces and
    form, is rejected. `called` is the name of the side, where that is not the modality that it is
    read as.

    A corpus of `parts` is mixed from theirs: its rows are chosen by `seed` where parts are not
    taken whole, and of its own it has no path and no columns but those passed through.

    Raises:
        ValueError: if fields contradict each other.
    """

    path: str
    modality: Literal["text", "image"]
    format: Format = "auto"
    id_column: str = "id"
    text_column: str = "text"
    image_column: str = "image"
    embedding_column: str | None = None
    ids_path: str | None = None
    passed_through: tuple[str, ...] = ()
    max_text_bytes: int = MAX_TEXT_BYTES
    called: str = ""
    unicode: Literal["none", "NFC", "NFKC"] = "none"
    unique_texts: bool = False
    parts: tuple[Part, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.modality not in {"text", "image"}:
            raise ValueError(f"a corpus holds text or image, not {self.modality!r}")
        if self.format not in {"auto", *FORMATS}:
            raise ValueError(f"format {self.format!r} of {self.shown} is not one that is read")
        reserved = _RESERVED | ({schema.IMAGE} if self.modality == "image" else frozenset())
        taken = [name for name in self.passed_through if name in reserved]
        if taken:
            raise ValueError(
                f"columns {locations.listed(taken)} of {self.shown} cannot be passed through: "
                "the pipeline uses these names itself"
            )
        if len(set(self.passed_through)) < len(self.passed_through):
            raise ValueError(f"{self.shown} names a passed-through column twice")

    @property
    def shown(self) -> str:
        """The path without credentials, for messages; of a mixed corpus the parts' names."""
        if self.parts:
            return f"the mixture of {locations.listed([part.name for part in self.parts])}"
        return redact_url(self.path)

    @property
    def name(self) -> str:
        """What its rows are called."""
        return self.called or self.modality

    @property
    def reading(self) -> dict[str, Any]:
        """Its fields but for what its rows are called.

        What came later stands here only where it is used: what was made before stays valid.
        """
        return {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name != "called"
            and (one.name not in _ADDED or getattr(self, one.name) != one.default)
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What is read and how, JSON-able; the path is absolute and without credentials."""
        values = self.reading
        values["modality"] = self.name
        values["passed_through"] = [*self.passed_through]
        values["path"] = "" if self.parts else redact_url(locations.absolute(self.path))
        if self.parts:
            values["parts"] = [
                {**vars(part), "corpus": part.corpus.identity} for part in self.parts
            ]
        return values

    @property
    def holds_embeddings(self) -> bool:
        """Whether rows carry embeddings; looks at the files if the format is to be found out."""
        if self.parts:
            return all(part.corpus.holds_embeddings for part in self.parts)
        if self.embedding_column is not None:
            return True
        return carries_embeddings(self, resolve_format(self))

    @property
    def is_local(self) -> bool:
        """Whether all of it lies on this machine's filesystem."""
        return all(locations.is_local(one.path) for one in self.corpora)

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora that have files: those of the parts, else itself."""
        return tuple(part.corpus for part in self.parts) or (self,)

    def of(self, unit: Unit) -> Corpus:
        """Return the corpus that a unit was cut from: the part of its name, else itself."""
        found = [part.corpus for part in self.parts if part.name == unit.part]
        return found[0] if found else self


def carries_embeddings(corpus: Corpus, found: Format) -> bool:
    """Return whether rows of a file of format `found` carry embeddings; opens nothing."""
    return corpus.embedding_column is not None or FORMATS[found].embeddings == "always"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A slice of one file: what becomes one block, one shard, one receipt.

    `start` and `stop` are rows of the file; `byte_start` and `byte_stop` the same slice in bytes
    for text and JSON lines, and in the ids file (if it is text) for arrays. `digest` is of the
    slice's content; `key` adds the columns read. `dimension` is the plan's embedding width.
    `passed_through` is a base64 Arrow schema of those columns, so that every shard of a run gets
    the same types. `ids_path` is what is read with the file: ids of an array, or metadata of
    clip-retrieval. `source_path` and its rows are set where the file is a shard of ours: what it
    was made from. `identity` is what the file (and its ids file) was known by when it was planned,
    None where nothing tells. `planned_key` is the key that the plan gave, where a later one stands
    in `key`; "" where they are the same. `part` names the part of a mixed corpus; a unit that was
    not taken whole has fewer `rows` than its slice. `members` are the
    names of image files in the folder `path`, the rows of the unit.
    """

    key: str
    path: str
    format: Format
    start: int
    stop: int
    rows: int
    digest: str
    has_ids: bool
    byte_start: int = 0
    byte_stop: int = 0
    ids_path: str | None = None
    dimension: int | None = None
    passed_through: str = ""
    source_path: str = ""
    source_start: int = 0
    source_stop: int = 0
    identity: str | None = None
    planned_key: str = ""
    part: str = ""
    members: tuple[str, ...] = ()

    @property
    def passed_through_schema(self) -> pa.Schema:
        """The passed-through columns with their types, empty if there are none."""
        if not self.passed_through:
            return pa.schema([])
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.passed_through)))

    @property
    def whole(self) -> Unit:
        """The unit with all rows of its slice, as the file has them."""
        whole = dataclasses.replace(self, rows=self.stop - self.start)
        if not self.part:
            return whole
        own = pa.schema([one for one in self.passed_through_schema if one.name != SOURCE])
        return dataclasses.replace(whole, passed_through=schema_text(own))

    def to_json(self) -> str:
        """Return the unit as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """Return the unit that `to_json` wrote."""
        values = cast(dict[str, Any], json.loads(text))
        return cls(**{**values, "members": tuple(values.get("members", ()))})


def schema_text(schema: pa.Schema) -> str:
    """Return an Arrow schema as base64 text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def resolve_format(corpus: Corpus) -> Format:
    """Return the corpus's format, found out from its files if it is "auto" (a mixed one stays so).

    Raises:
        ValueError: as `corpus_files` does.
    """
    if corpus.parts:
        return "auto"
    return corpus.format if corpus.format != "auto" else corpus_files(corpus)[0]


def corpus_files(corpus: Corpus) -> tuple[Format, list[FileEntry]]:
    """Return the corpus's format and files, sorted; a dataset folder has no file list here.

    Raises:
        ValueError: if there is no such path, no file of a known ending, or files of two formats,
            or a name that no message and no manifest could hold.
    """
    _check_name(corpus.path)
    url = locations.absolute(corpus.path)
    if corpus.format == "dataset":
        return "dataset", []
    if corpus.format == "clip-retrieval" and locations.is_folder(url):
        return "clip-retrieval", _clip_retrieval_files(corpus, locations.list_files(url))
    if any(sign in corpus.path for sign in "*?[") and not locations.exists(url):
        entries = locations.glob_files(url)
    elif locations.is_folder(url):
        if corpus.format == "auto" and locations.exists(locations.join(url, "current.json")):
            return "dataset", []
        entries = locations.list_files(url)
        if corpus.format == "auto" and any(_CLIP_RETRIEVAL.match(one.name) for one in entries):
            return "clip-retrieval", _clip_retrieval_files(corpus, entries)
        if corpus.format == "auto" and _SAVED & {entry.name for entry in entries}:
            raise ValueError(f"{corpus.shown} is a Hugging Face data set; set format: datasets")
    elif locations.exists(url):
        return _only_file(corpus, url)
    else:
        raise ValueError(f"there is no file or folder {corpus.shown}")
    return _chosen(corpus, entries)


def _check_name(url: str) -> None:
    """Refuse line ends, control characters and bytes that are not UTF-8 in a path."""
    if _UNFIT_FOR_NAMES.search(url):
        raise ValueError(
            f"{redact_url(url)!a} has control characters or bytes that are not UTF-8 in its "
            "name; rename it"
        )


def _only_file(corpus: Corpus, url: str) -> tuple[Format, list[FileEntry]]:
    found = file_format(url) if corpus.format == "auto" else corpus.format
    if found in {None, "webdataset"}:
        _refuse_packed_tars([url])
    if found is None:
        raise ValueError(
            f"{corpus.shown} has an ending that is not known; known are "
            f"{locations.listed(list(ENDINGS))}, or set the format"
        )
    return found, [FileEntry(url=url, name=url.rsplit("/", 1)[-1], size=-1)]


def _chosen(corpus: Corpus, entries: list[FileEntry]) -> tuple[Format, list[FileEntry]]:
    """Return the entries of known endings (or of the wanted format), ids files left out."""
    for entry in entries:
        _check_name(entry.url)
    names = {entry.url for entry in entries}
    kept = [
        (found, entry)
        for entry in entries
        if (found := file_format(entry.url)) is not None
        and not _belongs_to_array(entry.url, names)
        and corpus.format in {"auto", found}
    ]
    kept = _of_the_side(corpus, kept)
    formats = sorted({found for found, _ in kept})
    if not kept or formats == ["webdataset"]:
        _refuse_packed_tars(entry.url for entry in entries)
    if not kept:
        wanted = [e for e, f in ENDINGS.items() if corpus.format in {"auto", f}]
        raise ValueError(f"{corpus.shown} has no file ending in {locations.listed(wanted)}")
    if len(formats) > 1:
        raise ValueError(
            f"{corpus.shown} has files of several formats ({locations.listed(formats)}); "
            "set the format or give a glob"
        )
    return kept[0][0], [entry for _, entry in kept]


def _of_the_side(
    corpus: Corpus, kept: list[tuple[Format, FileEntry]]
) -> list[tuple[Format, FileEntry]]:
    """Return the files that can hold what is read, where there are others: captions beside images.

    All of them where that leaves none, so that what is said is of what is there.
    """
    fitting = [(found, entry) for found, entry in kept if can_hold(corpus, found)]
    return fitting or kept


def can_hold(corpus: Corpus, found: Format) -> bool:
    """Return whether a file of a format can hold what is read of a corpus."""
    traits = FORMATS[found]
    if corpus.embedding_column is not None:
        return traits.embeddings != "never"
    if traits.embeddings == "always":
        return True
    return traits.texts if corpus.modality == "text" else traits.images


_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def _refuse_packed_tars(urls: Iterable[str]) -> None:
    """Refuse compressed tars: no part of one can be read alone."""
    for url in urls:
        if url.lower().endswith(_PACKED_TARS):
            raise ValueError(
                f"{redact_url(url)} is a compressed tar, which is not read: no sample of it can "
                "be read without all before it; unpack it to .tar (gunzip, zstd -d, ...)"
            )


def _belongs_to_array(url: str, names: set[str]) -> bool:
    """Return whether a file is the ids file of an array that is listed too."""
    return any(
        url.endswith(ending) and url.removesuffix(ending) + array in names
        for ending in IDS_ENDINGS
        for array in ARRAY_ENDINGS
    )


def _clip_retrieval_files(corpus: Corpus, entries: list[FileEntry]) -> list[FileEntry]:
    """Return the embeddings of a side among the files of a folder of clip-retrieval, by number.

    Raises:
        ValueError: if it has none, or a name that no message could hold.
    """
    side = {"image": "img", "text": "text"}[corpus.modality]
    found = []
    for entry in entries:
        named = _CLIP_RETRIEVAL.match(entry.name)
        if named is not None and named[1] == side:
            _check_name(entry.url)
            found.append((int(named[2]), entry.name, entry))
    if not found:
        raise ValueError(
            f"{corpus.shown} has no {side}_emb/{side}_emb_N.npy, where clip-retrieval writes the "
            f"embeddings of the {corpus.modality} side"
        )
    return [entry for _, _, entry in sorted(found, key=lambda one: one[:2])]


_CLIP_RETRIEVAL = re.compile(r"(img|text)_emb/\1_emb_(\d{1,18})\.npy$")


IDS_ENDINGS = (".ids.txt", "_ids.npy")
"""NAME.ids.txt or NAME_ids.npy beside NAME.npy (.npz, .safetensors) names its rows."""
