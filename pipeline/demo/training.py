"""Training of the demo encoder: vocabulary, model, loop and the folder that ships.

The temperature is fixed at 0.01, so that the modality gap stays as open as in a real CLIP. In the
first part of training the image tower also learns to name what a picture shows (linear heads,
thrown away later): contrast alone had learnt colours but no shapes after 500 steps. The tower is a
small ResNet, because a ViT of its cost learnt shapes in several times the steps.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP, SimpleTokenizer
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.demo.telling import BACKGROUNDS, COLOURS, LIGHTS, RELATIONS, SHAPES, SIZES
from pipeline.demo.world import IMAGE_SIZE, TRAINING_INDEX, Scene

TEMPERATURE = 0.01
CONTEXT_LENGTH = 32
"""Tokens of a caption, the start and end tokens included."""
EMBEDDING_DIMENSION = 128
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
VOCABULARY_NAME = "bpe_simple_vocab.txt.gz"
_MEAN = (0.5, 0.5, 0.5)
_STD = (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Training:
    """How the encoder is trained; `seed` decides the weights, the scenes and the captions.

    The naming loss starts at `naming_weight` and falls to nothing over `naming_share` of the steps.
    """

    seed: int = 0
    steps: int = 450
    batch_rows: int = 256
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 60
    naming_weight: float = 3.0
    naming_share: float = 0.6


def learn_merges(captions: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Return the most frequent byte-pair merges of the words (runs of letters), at most `count`.

    Ties are broken by the pair itself, so equal captions give equal merges.
    """
    frequency = Counter(
        word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower())
    )
    words = [([*word[:-1], word[-1] + "</w>"], times) for word, times in sorted(frequency.items())]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, times in words:
            for pair in itertools.pairwise(pieces):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for pieces, _ in words:
            _merge(pieces, best)
    return merges


def write_vocabulary(merges: Sequence[tuple[str, str]], path: Path) -> None:
    """Write merges as open_clip's `SimpleTokenizer` reads them; equal merges, equal bytes."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))


def encoder_config(vocabulary_size: int) -> dict[str, Any]:
    """Return the content of `open_clip_config.json`; the vocabulary's path is relative to it."""
    return {
        "model_cfg": {
            "embed_dim": EMBEDDING_DIMENSION,
            "init_logit_scale": math.log(1 / TEMPERATURE),
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "layers": [1, 1, 1, 1],
                "width": 16,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": vocabulary_size,
                "width": 128,
                "heads": 4,
                "layers": 3,
                "tokenizer_kwargs": {"bpe_path": VOCABULARY_NAME},
            },
        },
        "preprocess_cfg": {
            "size": IMAGE_SIZE,
            "mode": "RGB",
            "mean": list(_MEAN),
            "std": list(_STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def build_model(config: dict[str, Any], seed: int) -> CLIP:
    """Build the untrained model of a config, its temperature frozen."""
    torch.manual_seed(seed)
    model = CLIP(**config["model_cfg"]).to(memory_format=torch.channels_last)
    model.logit_scale.requires_grad_(False)
    return model


def pixels(images: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensor:
    """Return normalised float32 pictures `[n, 3, IMAGE_SIZE, IMAGE_SIZE]` of uint8 ones."""
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return stack.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def contrastive_loss(images: Tensor, texts: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of unit rows `[n, d]`, at the fixed temperature."""
    logits = images @ texts.T / TEMPERATURE
    own = torch.arange(len(logits))
    forth = functional.cross_entropy(logits, own)
    back = functional.cross_entropy(logits.T, own)
    return (forth + back) / 2


class NamingHeads(torch.nn.Module):
    """Linear heads that read a scene's attributes from image features, for training alone."""

    def __init__(self) -> None:
        super().__init__()
        counts = (len(SHAPES), len(COLOURS), len(SIZES))
        self.counts = (*counts, *counts, 2, len(BACKGROUNDS), len(LIGHTS))
        self.norm = torch.nn.LayerNorm(EMBEDDING_DIMENSION)
        self.heads = torch.nn.Linear(EMBEDDING_DIMENSION, sum(self.counts))

    def loss(self, features: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Return the mean cross-entropy over attributes of features `(n, EMBEDDING_DIMENSION)`."""
        own = torch.tensor([_attributes(scene) for scene in scenes])
        scores = self.heads(self.norm(features)).split(self.counts, dim=1)
        losses = [functional.cross_entropy(part, own[:, k]) for k, part in enumerate(scores)]
        return torch.stack(losses).mean()


def train(
    model: CLIP,
    tokenizer: SimpleTokenizer,
    training: Training,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train in place on scenes that are never drawn twice; return every step's contrastive loss.

    Args:
        progress: called after a step with the number of steps done and the contrastive loss.
    """
    heads = NamingHeads()
    optimizer = torch.optim.AdamW(
        _parameter_groups([model, heads], training.weight_decay),
        lr=training.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, training))
    losses: list[float] = []
    model.train()
    for step in range(training.steps):
        start = TRAINING_INDEX + step * training.batch_rows
        scenes = [Scene(training.seed, start + row) for row in range(training.batch_rows)]
        images = pixels([scene.image() for scene in scenes])
        tokens = tokenizer([scene.caption() for scene in scenes])
        # The math backend: the fused one's bfloat16 backward is four times slower on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            with torch.autocast("cpu", torch.bfloat16):
                image_rows = model.encode_image(images)
                text_rows = model.encode_text(tokens)
            loss = contrastive_loss(
                functional.normalize(image_rows.float(), dim=-1),
                functional.normalize(text_rows.float(), dim=-1),
            )
            naming = _naming_weight(step, training)
            total = loss + naming * heads.loss(image_rows.float(), scenes) if naming else loss
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, losses[-1])
    model.eval()
    return losses


def save_encoder(model: CLIP, config: dict[str, Any], folder: Path) -> None:
    """Write config and weights beside the vocabulary, as open_clip's `local-dir`.

    Matrices are float16, vectors and running statistics stay as they are.
    """
    weights = {
        name: (value.half() if value.ndim >= 2 else value).detach().contiguous()
        for name, value in model.state_dict().items()
    }
    (folder / WEIGHTS_NAME).write_bytes(save(weights))
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _merge(pieces: list[str], pair: tuple[str, str]) -> None:
    position = 0
    while position < len(pieces) - 1:
        if (pieces[position], pieces[position + 1]) == pair:
            pieces[position : position + 2] = ["".join(pair)]
        position += 1


def _attributes(scene: Scene) -> list[int]:
    """Return what a picture shows: the upper or left figure first, so no order is to be guessed."""
    near, far = scene.first, scene.second
    if RELATIONS[scene.relation] in ("right of", "below"):
        near, far = far, near
    return [*near, *far, scene.relation // 2, scene.background, scene.light]


def _naming_weight(step: int, training: Training) -> float:
    last = training.naming_share * training.steps
    return training.naming_weight * max(0.0, 1 - step / last)


def _parameter_groups(
    modules: Sequence[torch.nn.Module], weight_decay: float
) -> list[dict[str, Any]]:
    parameters = (value for module in modules for value in module.parameters())
    trained = [value for value in parameters if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim < 2], "weight_decay": 0.0},
    ]


def _rate(step: int, training: Training) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then a half cosine."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    rest = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * rest))
