"""Small open_clip models with random weights, in open_clip's folder layout."""

from __future__ import annotations

import copy
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

MERGES = ["t h", "th e</w>", "a n", "an d</w>", "d o", "do g</w>", "c a", "ca t</w>", "r e"]
VOCABULARY_SIZE = 2 * 256 + len(MERGES) + 2
END_TOKEN = VOCABULARY_SIZE - 1
CONTEXT = 24

CAPTIONS = [
    "the dog and the cat",
    "",
    "!",
    "a",
    "the",
    "!!!! the dog !!!!",
    "dog " * (CONTEXT - 2),
    "dog " * (CONTEXT - 1),
    "cat " * (3 * CONTEXT),
    "the red dog\nand the cat ran",
    "the <end_of_text> cat",
    "ünïcode dög",
    *("the cat and the dog " * k for k in range(1, 5)),
]
"""Of every length: empty, one token, exactly full, one too long, far too long."""

TRUNCATED = [False] * 7 + [True, True] + [False] * 7
"""Which CAPTIONS don't fit in the context."""


def model_config(**text: Any) -> dict[str, Any]:
    """Return the config of a small model; `text` overrides its text_cfg."""
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16}
        | {"patch_size": 16},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY_SIZE,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": "vocabulary.txt.gz"},
        }
        | text,
    }


COCA = model_config(embed_cls=True, output_tokens=True) | {
    "custom_text": True,
    "multimodal_cfg": model_config()["text_cfg"],
}
"""A small CoCa: a class token after the caption, a captioning decoder, towers that return pairs."""
COCA["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}


@pytest.fixture(scope="session")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a small architecture that open_clip knows, with its default tokenizer."""
    path = tmp_path_factory.mktemp("architectures") / "small-test-architecture.json"
    config = model_config(context_length=77, vocab_size=49408)
    del config["text_cfg"]["tokenizer_kwargs"]
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model's folder and returns its path."""

    def make(config: dict[str, Any], name: str = "model", seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        with gzip.open(folder / "vocabulary.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(["#version: 0.2", *MERGES]))
        document = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (folder / "open_clip_config.json").write_text(json.dumps(document))
        save_file(random_weights(config, seed), folder / "open_clip_model.safetensors")
        return folder

    return make


def random_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Return a state large enough that a wrong position or mask shows in the embeddings."""
    arguments = copy.deepcopy(config)
    custom = arguments.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in arguments:
        kind = open_clip.CoCa
    model = kind(**arguments)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.4
        for name, value in model.state_dict().items()
    }


def reference(folder: Path) -> tuple[Any, Any, Any]:
    """Return open_clip's own model, preprocessing and tokenizer for the folder."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name, bpe_path=str(folder / "vocabulary.txt.gz"))
    return model.eval(), preprocess, tokenizer


def picture(seed: int, *, size: tuple[int, int] = (50, 40), form: str = "PNG") -> bytes:
    """Return an encoded image of noise."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=form)
    return buffer.getvalue()
