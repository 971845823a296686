"""Settings of the downstream evaluation: plain dataclasses, shared with the run configuration.

This file imports nothing heavy, so that a configuration is validated without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from pipeline.align.settings import MethodName

Regime = Literal["text-only", "real-instructions", "double-text"]
"""How a method's model is trained: on substitutes alone; its projector on substitutes, then all of
it on instructions over real images; on substitutes of twice the text."""

REGIMES: tuple[str, ...] = get_args(Regime)

_EPOCHS = {"description": "Passes over the stage's samples; may be a fraction."}
_LEARNING_RATE = {"description": "Highest learning rate of AdamW in the stage."}
_STRICT = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One stage of training: passes over its samples, highest learning rate of AdamW."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    epochs: float = field(default=1.0, metadata=_EPOCHS)
    learning_rate: float = field(default=1e-3, metadata=_LEARNING_RATE)

    def __post_init__(self) -> None:
        _require(self.epochs > 0, f"epochs must be above 0, not {self.epochs}")
        _require(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")


# Each stage has defaults of its own, so that setting one of its keys leaves the others.


@dataclass(frozen=True, kw_only=True)
class LanguageStage(StageSettings):
    """The decoder reads text alone."""

    learning_rate: float = field(default=2e-3, metadata=_LEARNING_RATE)


@dataclass(frozen=True, kw_only=True)
class ProjectorStage(StageSettings):
    """Stage 1: captions, the decoder frozen."""

    epochs: float = field(default=4.0, metadata=_EPOCHS)
    learning_rate: float = field(default=4e-3, metadata=_LEARNING_RATE)


@dataclass(frozen=True, kw_only=True)
class InstructionStage(StageSettings):
    """Stage 2: instructions and captions, all of it trained."""

    epochs: float = field(default=2.0, metadata=_EPOCHS)
    learning_rate: float = field(default=2e-3, metadata=_LEARNING_RATE)


@dataclass(frozen=True, kw_only=True)
class RealInstructionStage(StageSettings):
    """Stage 2 where it is about real images."""

    epochs: float = field(default=8.0, metadata=_EPOCHS)


def _tiny_decoder() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.1,
    }


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The language model: a transformers config by its fields, or a local causal LM by path.

    A decoder made from fields starts at random and reads text alone first (`language` stage); one
    from a path comes with its tokenizer and has read its text already.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    path: str | None = None
    """Folder of a local causal LM in safetensors with its tokenizer, in place of the tiny one."""
    config: dict[str, Any] = field(default_factory=_tiny_decoder)
    """A transformers config by its fields, of a decoder that starts at random."""
    vocabulary: int = 1024
    """Most tokens of the byte-level BPE vocabulary that is learnt from the captions."""
    language: LanguageStage = LanguageStage()

    def __post_init__(self) -> None:
        _require(
            self.path is not None or "model_type" in self.config,
            "decoder.config has no model_type; name one of transformers', such as llama",
        )
        _require(
            self.vocabulary >= 300,
            f"decoder.vocabulary must be 300 or more (256 of them are bytes), "
            f"not {self.vocabulary}",
        )


@dataclass(frozen=True, kw_only=True)
class DownstreamSettings:
    """The downstream evaluation (the recipe of the paper's section on multimodal LMs)."""

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT

    seeds: int = 5
    """Seeds: of the fits, of the decoder, of the order and choice of samples."""
    methods: tuple[MethodName, ...] = (
        "identity",
        "c3",
        "unicorn",
        "realign",
        "anisoalign-init",
        "anisoalign-prior",
        "anisoalign",
    )
    """Methods whose substitutes are trained on; blind and real images come by themselves."""
    regimes: tuple[Regime, ...] = ("text-only", "real-instructions", "double-text")
    """On substitutes alone; then on instructions about real images; on twice the text."""
    captions: int = 6000
    """Captions, and images with captions, that a model is trained on; twice the text doubles it."""
    real_images: int = 50
    """Real images that the instructions of `real-instructions` are about; with many of them the
    packaged world teaches all that there is to learn, whatever the projector had read before."""
    test_images: int = 2000
    """Real images that models are asked about."""
    visual_tokens: int = 4
    """Tokens that the projector makes of an embedding."""
    projector_width: int = 512
    """Width of the projector's hidden layer."""
    batch_size: int = 64
    """Samples in a step."""
    gpus_per_trial: float = 0.0
    """GPUs of each trial, for a decoder that wants one; 0 trains on one CPU thread."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)  # it holds a mapping
    projector: ProjectorStage = ProjectorStage()
    instructions: InstructionStage = InstructionStage()
    real_instructions: RealInstructionStage = RealInstructionStage()

    def __post_init__(self) -> None:
        for name in ("seeds", "captions", "visual_tokens", "projector_width", "batch_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(
            self.gpus_per_trial >= 0, f"gpus_per_trial must not be negative: {self.gpus_per_trial}"
        )
        _require(self.test_images >= 2, "test_images must be at least 2")
        _require(
            1 <= self.real_images <= self.captions,
            f"real_images is {self.real_images}; it must be between 1 and captions "
            f"({self.captions}), as many images as there are",
        )
        _require(len(self.methods) > 0, "methods names none")
        _require(len(self.regimes) > 0, f"regimes names none; known are {', '.join(REGIMES)}")
