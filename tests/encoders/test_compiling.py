"""Compiled towers give what the others give, compiled once for captions of every length."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch._dynamo.testing import CompileCounterWithBackend

from pipeline.encoders import OpenClipEncoder
from pipeline.encoders.compiling import compiled
from tests.encoders.conftest import CAPTIONS, COCA, model_config, picture

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler",
)

# One layer: each more takes the compiler seconds.
CAUSAL = model_config(layers=1)
CLASS_TOKEN = COCA | {"text_cfg": COCA["text_cfg"] | {"layers": 1}}


def encoder_of(folder: Path, **options: Any) -> OpenClipEncoder:
    return OpenClipEncoder(f"local-dir:{folder}", device="cpu", **options)


@needs_compiler
@pytest.mark.parametrize("config", [CAUSAL, CLASS_TOKEN], ids=["causal", "class token"])
def test_captions_are_the_plain_towers(
    config: dict[str, Any], make_folder: Callable[..., Path]
) -> None:
    folder = make_folder(config)
    plain = encoder_of(folder)
    encoder = encoder_of(folder, compile=True, towers=("text",))
    for texts in (CAPTIONS, ["dog"], ["the dog", "dog"]):
        expected = plain.encode_texts(texts)
        found = encoder.encode_texts(texts)
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-5, rtol=0)
        assert found.truncated.tolist() == expected.truncated.tolist()


@needs_compiler
def test_images_are_the_plain_towers(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(CAUSAL | {"vision_cfg": CAUSAL["vision_cfg"] | {"layers": 1}})
    images = [picture(seed) for seed in range(5)]
    expected = encoder_of(folder).encode_images(images).embeddings
    encoder = encoder_of(folder, compile=True, towers=("image",), image_batch=2)
    found = encoder.encode_images(images).embeddings
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_one_graph_for_every_number_of_rows_and_every_length() -> None:
    counter = CompileCounterWithBackend("eager")
    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda one: compile_(one, backend=counter))
        forward = compiled(lambda batch: batch.sin().cumsum(dim=1) * 2, varying=(0, 1))
    for rows, length in ((2, 4), (1, 4), (7, 5), (64, 31), (1, 2)):
        batch = torch.rand(rows, length)
        torch.testing.assert_close(forward(batch), batch.sin().cumsum(dim=1) * 2)
    assert counter.frame_count == 1


def test_a_missing_compiler_is_one_line(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "nowhere"),))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch.compiler.reset()
    folder = make_folder(model_config())
    with pytest.raises(ValueError, match=r"^encoder\.compile: torch.compile failed on") as caught:
        encoder_of(folder, compile=True)
    assert "\n" not in str(caught.value)
