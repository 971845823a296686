"""From a model's name to its modules, tokenizer and preprocessing, without executing any file.

Weights come from safetensors, or from torch files read with `weights_only=True`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder

from pipeline.encoders.files import (
    CONFIG_FILE,
    DEMO,
    DEMO_FOLDER,
    LOCAL_DIR,
    WEIGHTS_FILE,
    file_state,
)
from pipeline.encoders.tokens import vocabulary

RANDOM = "random"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: open_clip's name for it, its config and its weights.

    `pretrained` is what open_clip's factory takes beside the name; `weights` is the file it reads,
    None for random weights; `tokenizer_options` override the config's.
    """

    name: str
    pretrained: str | None
    config: dict[str, Any]
    weights: Path | None
    tokenizer_options: dict[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU in evaluation mode, with what belongs to it."""

    model: Any
    tokenizer: Any
    preprocess: Callable[[Any], torch.Tensor]
    preprocess_config: dict[str, Any]
    source: ModelSource
    weights_state: tuple[int, int] | None
    hugging_face_config: dict[str, Any] | None

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of config, preprocessing, tokenizer and weights.

        The weights' file is read in full, so this costs a second or two a gigabyte.

        Raises:
            ValueError: if the weights' file changed since the model was loaded.
        """
        identity = {
            "model": self._config_without_places(),
            "preprocess": self.preprocess_config,
            "tokenizer": vocabulary(self.tokenizer),
            "context_length": self.tokenizer.context_length,
            "weights": self._weights_digest(),
        }
        if self.hugging_face_config is not None:
            identity["text tower"] = self.hugging_face_config
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _config_without_places(self) -> dict[str, Any]:
        """Return the config; where a Hugging Face tower's own lies is not part of what it is."""
        text = dict(self.source.config["text_cfg"])
        if Path(text.get("hf_model_name") or "").is_absolute():
            text["hf_model_name"] = ""
        return {**self.source.config, "text_cfg": text}

    def _weights_digest(self) -> str:
        path = self.source.weights
        if path is None:
            # Random weights follow from the seed and from the code that draws them.
            return f"random seed 0, torch {torch.__version__}, open_clip {open_clip.__version__}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if file_state(path) != self.weights_state:
            raise ValueError(
                f"{path} changed after the encoder was loaded from it; start the run again"
            )
        return digest


def find_source(model: str, pretrained: str | None) -> ModelSource:
    """Return where `model` and `pretrained` lead; downloads the weights of a tag.

    Raises:
        ValueError: if there is no such architecture, tag, folder or file.
    """
    if model == DEMO or model.startswith(LOCAL_DIR):
        return _local_source(model, pretrained)
    return _architecture_source(model, pretrained)


def load(source: ModelSource) -> LoadedModel:
    """Return the model that `source` describes, on the CPU.

    Raises:
        ValueError: if weights and config don't fit each other, or a file is damaged.
    """
    try:
        weights_state = None if source.weights is None else file_state(source.weights)
        tokenizer = open_clip.get_tokenizer(source.name, **source.tokenizer_options)
        # Random weights are the same each time, and the caller's random state is left alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model, _, preprocess = open_clip.create_model_and_transforms(
                source.name,
                pretrained=source.pretrained,
                device="cpu",
                precision="fp32",
                pretrained_text=False,
                weights_only=True,
            )
    except ImportError as error:
        raise ValueError(
            f"encoder.model: {source.name} needs a package that is not installed ({error}); "
            "its text tower or tokenizer comes from Hugging Face: pip install transformers"
        ) from error
    # What a damaged or foreign file raises depends on its kind: SafetensorError, UnpicklingError,
    # RuntimeError for shapes, TypeError for unknown config keys.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        weights = "" if source.weights is None else f" with weights {source.weights}"
        raise ValueError(
            f"encoder.model: {source.name}{weights} could not be loaded: {reason}"
        ) from error
    _check_vocabulary(source, tokenizer)
    return LoadedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        preprocess=preprocess,
        preprocess_config=dict(model.visual.preprocess_cfg),
        source=source,
        weights_state=weights_state,
        hugging_face_config=_hugging_face_config(model),
    )


def _hugging_face_config(model: Any) -> dict[str, Any] | None:
    """Return what of a Hugging Face text tower's config decides its output; None without one."""
    tower = getattr(model, "text", None)
    if not isinstance(tower, HFTextEncoder):
        return None
    # What differs from the defaults alone: releases of transformers add keys.
    said: dict[str, Any] = tower.config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        said.pop(name, None)
    return said


def keep_towers(model: Any, towers: tuple[str, ...]) -> None:
    """Drop the parameters of the towers that are not in `towers`, and captioning decoders."""
    dropped = ["text_decoder"]
    if "image" not in towers:
        dropped.append("visual")
    if "text" not in towers:
        # CLIP keeps its text tower in its own attributes, the other models in `text`.
        dropped += ["text", "transformer", "token_embedding", "positional_embedding"]
        dropped += ["ln_final", "text_projection", "attn_mask"]
    for name in dropped:
        if hasattr(model, name):
            delattr(model, name)


def _local_source(model: str, pretrained: str | None) -> ModelSource:
    folder = DEMO_FOLDER if model == DEMO else Path(model.removeprefix(LOCAL_DIR)).expanduser()
    if pretrained is not None:
        raise ValueError(
            f"encoder.pretrained: {pretrained!r} can't be used with encoder.model {model!r}, "
            "which holds its own weights; remove encoder.pretrained"
        )
    if not folder.is_dir():
        raise ValueError(
            f"encoder.model: no folder {folder}; name one with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"encoder.model: {folder} has no {name}; for other weights name an architecture "
                "in encoder.model and the file in encoder.pretrained"
            )
    config = _read_model_config(folder / CONFIG_FILE)
    return ModelSource(
        name=f"{LOCAL_DIR}{folder}",
        pretrained=None,
        config=config,
        # open_clip looks for this name first in a folder, so this is the file that it reads.
        weights=folder / WEIGHTS_FILE,
        tokenizer_options=_local_tokenizer_options(folder, config),
    )


def _architecture_source(model: str, pretrained: str | None) -> ModelSource:
    name = model.replace("/", "-")
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "see open_clip.list_models()"
        raise ValueError(
            f"encoder.model: open_clip knows no architecture {model!r}; {hint} "
            f"(or use {LOCAL_DIR}/path or {DEMO})"
        )
    if pretrained == RANDOM:
        return ModelSource(name, None, config, None, {})
    return ModelSource(name, pretrained, config, _find_weights(name, pretrained), {})


def _find_weights(name: str, pretrained: str | None) -> Path:
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = f"tags of {name}: {', '.join(tags) or 'none'}"
    if not pretrained:
        raise ValueError(
            f"encoder.pretrained: {name} needs weights; name a tag or a weights file ({known})"
        )
    tag_config = open_clip.get_pretrained_cfg(name, pretrained)
    if tag_config:
        try:
            return Path(open_clip.download_pretrained(tag_config))
        # Anything from no network to a full disk, raised by urllib, requests or the hub's client.
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"encoder.pretrained: the weights {pretrained!r} of {name} could not be "
                f"downloaded ({reason}); fetch them elsewhere and name the file"
            ) from error
    if not Path(pretrained).is_file():
        raise ValueError(
            f"encoder.pretrained: {pretrained!r} is neither a file nor a known tag ({known})"
        )
    return Path(pretrained)


def _read_model_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        config["embed_dim"], config["vision_cfg"], config["text_cfg"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"encoder.model: {path} is not open_clip's config; it needs a model_cfg with "
            "embed_dim, vision_cfg and text_cfg"
        ) from error
    options = config["text_cfg"].get("tokenizer_kwargs") or {}
    if options.get("trust_remote_code"):
        raise ValueError(
            f"encoder.model: {path} asks for trust_remote_code, which would run code from the "
            "folder; remove it"
        )
    return dict(config)


def _local_tokenizer_options(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    bpe_path = (config["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if bpe_path is None:
        return {}
    # open_clip would look in the working directory; the vocabulary lies beside the config.
    vocabulary_file = folder / bpe_path
    if not vocabulary_file.is_file():
        raise ValueError(f"encoder.model: no vocabulary {vocabulary_file}, which its config names")
    return {"bpe_path": str(vocabulary_file)}


def _check_vocabulary(source: ModelSource, tokenizer: Any) -> None:
    size = getattr(tokenizer, "vocab_size", None)
    known = source.config["text_cfg"].get("vocab_size")
    if size is not None and known is not None and size > known:
        raise ValueError(
            f"encoder.model: the tokenizer of {source.name} has {size} tokens but the model knows "
            f"{known}; config and vocabulary don't belong together"
        )
