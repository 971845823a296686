"""The other sections of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section
from pipeline.encoders.settings import check_settings


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
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a class of your own."""

    @model_validator(mode="after")
    def _check_settings(self) -> EncoderSection:
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
        }
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
    """Look for ids that occur in several units; takes about 21 bytes a row in the driver."""


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
