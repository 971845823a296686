"""Settings of the alignment methods: plain dataclasses, shared with the run configuration.

This file imports nothing heavy, so that a configuration is validated without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

MethodName = Literal["identity", "centroid", "realign", "anisoalign-init", "anisoalign"]
"""Every method name that `align.method` and `evaluate geometry --methods` accept."""

METHODS: tuple[MethodName, ...] = get_args(MethodName)

_STRICT = {"extra": "forbid", "strict": True}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """The geometric ladder of noise scales sigma_t, in radians (section 4.3)."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    smallest: float = 0.05
    largest: float = 1.0
    levels: int = 16

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
    """Stage I: the periodic phase prior of the target (section 4.3)."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    neighbours: int = 4
    drift_step: float = 0.1
    width: int = 256
    steps: int = 500
    batch_size: int = 512
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        _check_training("prior", self.width, self.steps, self.batch_size, self.learning_rate)
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
    """Stage II: the instance-conditioned bounded refinement of the source (section 4.4).

    Neither loss of the method looks at the complement, so `complement_bound` limits a change that
    training leaves at zero.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    phase_bound: float = 0.15
    log_radius_bound: float = 0.2
    complement_bound: float = 0.02
    prior_weight: float = 1.0
    phase_weight: float = 10.0
    width: int = 256
    steps: int = 400
    batch_size: int = 512
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _check_training("refiner", self.width, self.steps, self.batch_size, self.learning_rate)
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


def _check_training(stage: str, width: int, steps: int, batch_size: int, rate: float) -> None:
    _require(width >= 1, f"{stage}.width must be at least 1, not {width}")
    _require(steps >= 0, f"{stage}.steps must not be negative, not {steps}")
    _require(batch_size >= 1, f"{stage}.batch_size must be at least 1, not {batch_size}")
    _require(rate > 0, f"{stage}.learning_rate must be positive, not {rate}")


@dataclass(frozen=True, kw_only=True)
class AnisoAlignSettings:
    """The method's settings: frame (4.1, 4.2), noise, prior (4.3) and refiner (4.4)."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    rank: int | Literal["auto"] = "auto"
    mixing: Literal["random", "identity"] = "random"
    ridge: float = 0.0
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    refiner: RefinerSettings = field(default_factory=RefinerSettings)

    def __post_init__(self) -> None:
        if self.rank != "auto":
            _require(
                self.rank >= 2 and self.rank % 2 == 0,
                f"rank must be auto or an even number of at least 2, not {self.rank}",
            )
        _require(self.ridge >= 0, f"ridge must not be negative, not {self.ridge}")


@dataclass(frozen=True, kw_only=True)
class AlignSettings(AnisoAlignSettings):
    """The `align` section of a run: which method, and AnisoAlign's settings."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    method: MethodName = "anisoalign"
