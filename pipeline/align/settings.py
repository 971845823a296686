"""Settings of the alignment methods: plain dataclasses, shared with the run configuration.

This file imports nothing heavy, so that a configuration is validated without loading torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args

MethodName = Literal[
    "identity",
    "centroid",
    "moment",
    "permuted",
    "c3",
    "unicorn",
    "realign",
    "bures-block",
    "bures-subspace",
    "bures-gromov",
    "anisoalign-radial",
    "anisoalign-init",
    "anisoalign-refine",
    "anisoalign-prior",
    "anisoalign-phase",
    "anisoalign",
]
"""Every method that `align.method` accepts."""

PAIRED_METHODS: tuple[str, ...] = ("oracle",)
"""Diagnostic methods: they use pairs, so that no run can have them."""

METHODS: tuple[str, ...] = (*get_args(MethodName), *PAIRED_METHODS)
"""Every method that `evaluate geometry --methods` accepts."""

Initialization = Literal["radial", "block", "subspace", "gromov"]
"""Where AnisoAlign's refinement starts from."""

_STRICT = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}


def _line(description: str) -> dict[str, str]:
    return {"description": description}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """The geometric ladder of noise scales sigma_t, in radians (section 4.3 of the paper)."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    smallest: float = 0.05
    """The finest scale, in radians."""
    largest: float = 1.0
    """The coarsest scale, in radians; 1.5 at most."""
    levels: int = 16
    """Scales between them, ends included."""

    def __post_init__(self) -> None:
        _require(
            0 < self.smallest <= self.largest,
            f"noise needs 0 < smallest <= largest, not {self.smallest} and {self.largest}",
        )
        _require(
            self.largest <= 1.5,
            f"noise.largest is {self.largest} rad; the wrapped Gaussian is summed over 3 windings "
            "each way, which is exact to 1.5 rad only",
        )
        _require(self.levels >= 1, f"noise.levels must be at least 1, not {self.levels}")


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Stage I: the periodic phase prior of the target (section 4.3 of the paper)."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    neighbours: int = 4
    """Other blocks that each block is coupled with: those of the most stable relative phase."""
    drift_step: float = 0.1
    """Step tau down the potential before noise is added."""
    harmonics: int = 1
    """Multiples of each phase whose sine and cosine the network sees."""
    width: int = 256
    """Units of the network's hidden layers."""
    steps: int = 500
    """Training steps."""
    batch_size: int = 512
    """Images in a step."""
    learning_rate: float = 2e-3
    """Learning rate of the optimiser."""

    def __post_init__(self) -> None:
        _check_training("prior", self)
        _require(
            self.neighbours >= 1,
            f"prior.neighbours must be at least 1, not {self.neighbours}",
        )
        _require(
            self.drift_step >= 0,
            f"prior.drift_step must not be negative, not {self.drift_step}",
        )


@dataclass(frozen=True, kw_only=True)
class RefinerSettings:
    """Stage II: the bounded refinement of each row of the source (section 4.4 of the paper).

    Neither loss of the method looks at the complement, so `complement_bound` limits a change that
    training leaves at zero.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    bounds: Literal["fixed", "adaptive"] = "adaptive"
    """Bounds as they are, or in units of the target's own spread in each block: its circular
    standard deviation of the phase, and that of the log radius."""
    phase_bound: float = 0.05
    """Most that a phase may change: radians, or circular standard deviations of the block."""
    log_radius_bound: float = 0.05
    """Most that the logarithm of a radius may change: as it is, or in standard deviations."""
    complement_bound: float = 0.02
    """Most that a coordinate of the complement may change."""
    prior_weight: float = 1.0
    """Weight of L_II, which pulls phases to where the prior expects them; 0 switches it off."""
    phase_weight: float = 10.0
    """Weight of L_Phi, which keeps a text's relative phases; 0 switches it off."""
    harmonics: int = 1
    """Multiples of each phase whose sine and cosine the network sees."""
    width: int = 256
    """Units of the network's hidden layers."""
    steps: int = 400
    """Training steps."""
    batch_size: int = 512
    """Texts in a step."""
    learning_rate: float = 1e-3
    """Learning rate of the optimiser."""

    def __post_init__(self) -> None:
        _check_training("refiner", self)
        _require(
            self.bounds in ("fixed", "adaptive"),
            f"refiner.bounds must be fixed or adaptive, not {self.bounds!r}",
        )
        for name in (
            "phase_bound",
            "log_radius_bound",
            "complement_bound",
            "prior_weight",
            "phase_weight",
        ):
            _require(
                getattr(self, name) >= 0,
                f"refiner.{name} must not be negative, not {getattr(self, name)}",
            )


def _check_training(stage: str, settings: PriorSettings | RefinerSettings) -> None:
    for name in ("harmonics", "width", "batch_size"):
        value = getattr(settings, name)
        _require(value >= 1, f"{stage}.{name} must be at least 1, not {value}")
    _require(settings.steps >= 0, f"{stage}.steps must not be negative, not {settings.steps}")
    _require(
        settings.learning_rate > 0,
        f"{stage}.learning_rate must be positive, not {settings.learning_rate}",
    )


@dataclass(frozen=True, kw_only=True)
class AnisoAlignSettings:
    """The method's settings: frame (4.1, 4.2), noise, prior (4.3) and refiner (4.4).

    Lines that stand in `metadata` are inherited by `AlignSettings`; docstrings are not.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    rank: int | Literal["auto"] = field(
        default="auto",
        metadata=_line(
            "Directions r of the dominant subspace, an even number; auto: as many as hold 99 % of "
            "the joint structure's trace, at most 64."
        ),
    )
    mixing: Literal["learned", "random", "identity"] = field(
        default="random",
        metadata=_line(
            "R of the blocks: learned for stable image phases, Haar-random, or the identity."
        ),
    )
    ridge: float = field(default=0.0, metadata=_line("lambda of the joint structure matrix."))
    shrinkage: Literal["ledoit-wolf", "none"] = field(
        default="ledoit-wolf",
        metadata=_line(
            "Covariances of few samples: shrunk towards their mean variance, or as they are."
        ),
    )
    init: Initialization = field(
        default="gromov",
        metadata=_line(
            "Where the text starts in U: the paper's radial transport, or a linear transport of "
            "the blocks, of the whole subspace, or of the subspace with its inner products kept "
            "(gromov)."
        ),
    )
    displacement: float = field(
        default=0.4,
        metadata=_line(
            "How far the linear transports go, t from 0 (not at all) to 1 (the whole way)."
        ),
    )
    isometry_weight: float = field(
        default=10.0,
        metadata=_line("What a change of the texts' inner products costs the gromov transport."),
    )
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    refiner: RefinerSettings = field(default_factory=RefinerSettings)

    def __post_init__(self) -> None:
        if self.rank != "auto":
            _require(
                self.rank >= 2 and self.rank % 2 == 0,
                f"rank must be auto or an even number of at least 2, not {self.rank}",
            )
        for name in ("ridge", "isometry_weight"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"{name} must be finite and not negative, not {value}")
        _require(
            0 <= self.displacement <= 1,
            f"displacement must lie between 0 and 1, not {self.displacement}",
        )

    @classmethod
    def from_mapping(cls, said: Mapping[str, Any]) -> Self:
        """Return the settings that `dataclasses.asdict` made plain values of.

        Raises:
            ValueError: if they are those of another version.
        """
        if said.keys() != {one.name for one in fields(cls)}:
            raise ValueError("the aligner was fitted by another version of anisoalign; fit again")
        return cls(
            **{
                **said,
                "noise": NoiseSettings(**said["noise"]),
                "prior": PriorSettings(**said["prior"]),
                "refiner": RefinerSettings(**said["refiner"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class MomentSettings:
    """The full moment match."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    map: Literal["bures", "whitening"] = "bures"
    """Which linear map takes Sigma_t to Sigma_i: optimal transport, or whitening-colouring."""

    def __post_init__(self) -> None:
        _require(
            self.map in ("bures", "whitening"),
            f"moment.map must be bures or whitening, not {self.map!r}",
        )


@dataclass(frozen=True, kw_only=True)
class PermutedSettings:
    """The negative control: images drawn without a look at the text."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    images: int = 16_384
    """Images of the fitting set that the artifact keeps to draw from, at most."""

    def __post_init__(self) -> None:
        _require(self.images >= 1, f"permuted.images must be at least 1, not {self.images}")


@dataclass(frozen=True, kw_only=True)
class OracleSettings:
    """The diagnostic that looks at pairs."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    share: float = 0.5
    """Share alpha of the residual that is removed: 0 the centroid shift, 1 all of it."""
    directions: int | None = None
    """Number K of the residual's top eigenvectors in which it is removed; null for all."""

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, f"oracle.share must lie between 0 and 1, not {self.share}")
        _require(
            self.directions is None or self.directions >= 1,
            f"oracle.directions must be at least 1 or null, not {self.directions}",
        )


@dataclass(frozen=True, kw_only=True)
class C3Settings:
    """C3: centroid shift and noise."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    deviation: float = 0.04
    """Standard deviation of the Gaussian noise on each coordinate."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.deviation < math.inf,
            f"c3.deviation must be finite and not negative, not {self.deviation}",
        )


@dataclass(frozen=True, kw_only=True)
class AlignSettings(AnisoAlignSettings):
    """The `align` section of a run: which method, and every method's settings.

    Rank, mixing, ridge, shrinkage, displacement and isometry_weight make the frame and the map of
    bures-block, bures-subspace and bures-gromov too.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    method: MethodName = "anisoalign"
    """The method that a run fits."""
    moment: MomentSettings = field(default_factory=MomentSettings)
    """The full moment match."""
    permuted: PermutedSettings = field(default_factory=PermutedSettings)
    """The negative control."""
    oracle: OracleSettings = field(default_factory=OracleSettings)
    """The diagnostic that looks at pairs."""
    c3: C3Settings = field(default_factory=C3Settings)
    """C3."""
