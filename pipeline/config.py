"""Run configuration: strict, typed, validated, fingerprinted; YAML in, `--set a.b=c` over it."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.align.settings import PAIRED_METHODS, AlignSettings
from pipeline.encoders.settings import check_device, check_settings
from pipeline.evaluation.downstream.settings import DownstreamSettings
from pipeline.export.conversations import ConversationSettings
from pipeline.formats import Format
from pipeline.names import Names

DEMO_CAPTIONS = "demo:captions"
DEMO_IMAGES = "demo:images"
"""Paths that stand for the packaged world's corpora; a run writes them beside its output."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key and what to do."""


_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


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


class NamedSource(TextCorpus):
    """One of several sources; its name goes to the column `source`."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the mixture beside the others' weights; null takes all rows."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Most rows of it; which ones is drawn from the seed."""


class TextSource(TextCorpus):
    """Source side: captions, or text embeddings made elsewhere."""

    sources: dict[str, NamedSource] = {}
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


class EncoderSection(Section):
    """The contrastive encoder."""

    model: str = "demo"
    """open_clip architecture, `local-dir:/path`, `demo` for the packaged encoder, or
    `python:package.module:Class` for a class of your own."""
    pretrained: str | None = None
    """open_clip tag or weights file; `random` for seeded random weights (tests, benchmarks)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; bf16 through autocast."""
    compile: bool = False
    """Run the towers through torch.compile, which takes each worker a minute at its start."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto (a GPU where there is one), cpu (which asks the cluster for none), cuda, or `cuda:N` of
    the GPUs of one actor, counted from 0."""
    token_budget: Annotated[int, Field(ge=64)] = 16384
    """Tokens a text micro-batch may hold."""
    image_batch: Annotated[int, Field(ge=1)] = 64
    """Images in a micro-batch."""
    options: dict[str, Any] = {}
    """Keyword arguments of a class of your own."""

    @model_validator(mode="after")
    def _check_settings(self) -> EncoderSection:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        check_settings(vars(self), defaults)
        return self


class AlignerSection(Section):
    """An existing aligner."""

    path: str | None = None
    """Artifact folder or URL to use instead of fitting; null takes `<output.path>/aligner`."""


class OutputSection(Section):
    """Where results go."""

    path: str = "runs/run"
    """Folder or URL of the run (embeddings/, statistics/, aligner/, dataset/, summary.json); on
    several machines it has to be storage that all of them share."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the substitutes' values."""
    embeddings_dtype: Literal["float16", "float32"] = "float16"
    """Type of stored encoder outputs."""


class UnitsSection(Section):
    """How corpora are cut."""

    rows_per_shard: Annotated[int, Field(ge=1)] = 32_768
    """Rows of a unit of work, which becomes one shard."""
    images_per_shard: Annotated[int, Field(ge=1)] = 2_048
    """The same where rows are encoded images, a hundred times the size of captions."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """How often a unit is tried before the run says that it failed; the others are written."""


class RejectsSection(Section):
    """What happens to rows that cannot be used."""

    max_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run fails when a larger share of rows is quarantined."""
    unreadable_files: Literal["fail", "skip"] = "fail"
    """Whether a file that cannot be read ends the run or is named in the manifest and skipped."""
    max_text_bytes: Annotated[int, Field(ge=1)] = 65_536
    """A caption of more bytes (in UTF-8) is quarantined as too long."""
    duplicate_texts: Literal["keep", "reject"] = "keep"
    """Whether a caption that an earlier row has, but for case, spaces and Unicode form, is
    quarantined; near duplicates are not looked for."""
    check_ids: bool = True
    """Look for ids that occur in several units; takes about 100 bytes a row in the driver."""


class TrainSection(Section):
    """How Stage I and Stage II are trained."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Ray Train workers; 0 trains in the driver by the same loop."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPUs of each worker."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 200
    """Steps between checkpoints; 0 keeps only the end of each stage."""
    max_rows: Annotated[int, Field(ge=2)] = 262_144
    """Rows of each side that training draws from (a seeded choice of units)."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Worker failures after which training resumes from its checkpoint instead of failing."""


class RaySection(Section):
    """The cluster."""

    address: str | None = None
    """Ray address; null takes RAY_ADDRESS, else a cluster on this machine, else starts Ray here."""
    no_progress_timeout_s: Annotated[int, Field(ge=0)] = 1800
    """Seconds without progress after which a flow fails (waiting for nodes counts)."""
    encode_actors: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that encode and correct at once (actors beside GPUs, else tasks of one CPU); auto:
    one a GPU, else one a CPU."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of each actor; auto: 1 where the cluster has GPUs."""


class NightlySection(Section):
    """What a night does beyond a run: how far new text may drift from the aligner's."""

    on_drift: Literal["warn", "refit", "fail"] = "warn"
    """Past a threshold: publish and say so, fit the aligner anew, or publish nothing."""
    max_centroid_drift: Annotated[float, Field(ge=0)] = 0.15
    """Distance of the means, in units of the fitting text's spread."""
    max_covariance_drift: Annotated[float, Field(ge=0)] = 0.3
    """Relative distance of the covariances, each divided by its trace."""
    max_radial_drift: Annotated[float, Field(ge=0)] = 0.1
    """Kolmogorov-Smirnov distance of the radii, mean over the leading blocks."""
    min_rows: Annotated[int, Field(ge=2)] = 1000
    """Fewer rows than these are measured but not judged."""
    keep_versions: Annotated[int, Field(ge=1)] | None = None
    """Versions that are left after a night; null leaves all."""


class LeaseSection(Section):
    """One writer at a time."""

    expires_after_s: Annotated[int, Field(ge=20, le=3600)] = 120
    """Seconds after which the lease of a run that died without giving it back is taken over."""
    wait_s: Annotated[int, Field(ge=0, le=86_400)] = 0
    """Seconds to wait for the lease of another run; 0 refuses at once. A schedule whose machines
    vanish wants more than `expires_after_s`."""


class DemoSection(Section):
    """Sizes of the packaged world, for `demo:captions` and `demo:images` alone."""

    captions: Annotated[int, Field(ge=1)] = 20_000
    """Captions of the text side."""
    images: Annotated[int, Field(ge=1)] = 8_000
    """Pictures of the image side."""
    pairs: Annotated[int, Field(ge=1)] = 2_000
    """Pairs that `anisoalign demo` holds out to measure on."""


class RunConfig(Section):
    """Everything a run needs to know."""

    seed: int = 0
    """Seed of every random draw."""
    names: Names = Names()
    text: TextSource = TextSource()
    image: ImageSource = ImageSource()
    encoder: EncoderSection = EncoderSection()
    align: AlignSettings = AlignSettings()
    aligner: AlignerSection = AlignerSection()
    calibration: Literal["fit", "exact"] = "fit"
    """mu-hat over the fitting texts (one pass), or over the very corpus that is corrected."""
    output: OutputSection = OutputSection()
    units: UnitsSection = UnitsSection()
    rejects: RejectsSection = RejectsSection()
    train: TrainSection = TrainSection()
    ray: RaySection = RaySection()
    lease: LeaseSection = LeaseSection()
    nightly: NightlySection = NightlySection()
    conversations: ConversationSettings = ConversationSettings()
    downstream: DownstreamSettings = DownstreamSettings()
    demo: DemoSection = DemoSection()

    @model_validator(mode="after")
    def _check_device_and_gpus(self) -> RunConfig:
        check_device(self.encoder.device, self.ray.gpus_per_actor)
        return self

    def to_mapping(self) -> dict[str, Any]:
        """Return the configuration as plain values, defaults included."""
        return self.model_dump(mode="json")

    def fingerprint(self, *sections: str) -> str:
        """Return a hex digest of the named sections (all when none is named)."""
        values = self.to_mapping()
        chosen = {name: values[name] for name in (sections or values)}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def known_keys(schema: Mapping[str, Any] | None = None) -> list[str]:
    """Return every dotted key of the configuration."""
    root = RunConfig.model_json_schema() if schema is None else schema
    definitions = root.get("$defs", {})

    def walk(node: Mapping[str, Any], prefix: str) -> Iterable[str]:
        reference = node.get("$ref", "")
        properties = definitions.get(reference.rpartition("/")[2], node).get("properties", {})
        for name, child in properties.items():
            dotted = f"{prefix}{name}"
            below = list(walk(child, f"{dotted}."))
            yield from below or [dotted]

    return list(walk(root, ""))


def nearest_key(unknown: str) -> str | None:
    """Return the known dotted key closest to an unknown one, None when nothing is near."""
    keys = known_keys()
    last = unknown.rpartition(".")[2]
    by_name = {key.rpartition(".")[2]: key for key in keys}
    if last in by_name:  # the right name in the wrong section
        return by_name[last]
    sections = sorted({key.rpartition(".")[0] for key in keys} - {""})
    close = difflib.get_close_matches(unknown, [*keys, *sections], n=1, cutoff=0.6)
    if close:
        return close[0]
    named = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.7)
    return by_name[named[0]] if named else None


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"] if part not in _UNION_TAGS)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = nearest_key(location)
            lines.append(f"unknown key {location}" + (f"; did you mean {near}?" if near else ""))
        elif problem["type"] == "value_error":
            # The settings' messages begin with the key, or with their own section and the key.
            above, _, section = location.rpartition(".")
            message = str(problem["ctx"]["error"])
            own = message.startswith((f"{section}.", f"{section} ", f"{section}:"))
            place = above if own else location
            lines.append(f"{place}.{message}" if place else message)
        elif location == "align.method" and problem["input"] in PAIRED_METHODS:
            lines.append(
                f"{location}: {problem['input']} is a diagnostic method that uses pairs; it runs "
                f"in `anisoalign evaluate geometry --methods {problem['input']}` only"
            )
        else:
            lines.append(f"{location}: {problem['msg']}, not {problem['input']!r}")
    return "; ".join(dict.fromkeys(lines))


_UNION_TAGS = frozenset({"int", "float", "str", "literal['auto']", "constrained-int"})


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate plain values; raises ConfigError naming the key and, if unknown, the nearest one."""
    try:
        # Through JSON: strict there still takes a list for a tuple and a mapping for a dataclass.
        return RunConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except TypeError as error:
        raise ConfigError(
            f"the configuration holds a value that is not plain YAML: {error}"
        ) from None


def apply_settings(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return values with `a.b=c` settings laid over them; c is read as YAML.

    Raises:
        ConfigError: for a setting that has no `=`, or a path through something not a section.
    """
    result = copy.deepcopy(values)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set takes KEY=VALUE, for example align.rank=32, not {setting!r}")
        *sections, last = key.strip().split(".")
        node = result
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {setting}: {section} is a value, not a section")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting}: the value is not YAML ({error})") from None
    return result


def load_config(path: str | Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, lay `--set` settings over it and validate.

    Raises:
        ConfigError: when the file is missing or not a mapping, or a key or value is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not UTF-8 text") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not {type(values).__name__}")
    try:
        return parse_config(apply_settings(values, settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
