"""The trimmed forward gives what open_clip's own gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders import OpenClipEncoder
from pipeline.encoders.text_forwards import CausalForward, ClassTokenForward, PlainForward
from tests.encoders.conftest import (
    CAPTIONS,
    COCA,
    CONTEXT,
    END_TOKEN,
    TRUNCATED,
    model_config,
    reference,
)

TRIMMED = {
    "clip": model_config(),
    "clip-end-token": model_config(pool_type="eos", eos_id=END_TOKEN),
    "custom": model_config() | {"custom_text": True},
    "custom-first": model_config(pool_type="first") | {"custom_text": True},
    "custom-linear": model_config(proj_bias=True, qk_norm=True) | {"custom_text": True},
    "custom-no-projection": model_config(width=16, proj_type="none") | {"custom_text": True},
}
CLASS_TOKEN = {
    "coca": COCA,
    "coca-bidirectional": COCA | {"text_cfg": COCA["text_cfg"] | {"no_causal_mask": True}},
}
PLAIN = {
    "custom-last": model_config(pool_type="last") | {"custom_text": True},
    "custom-bidirectional": model_config(no_causal_mask=True) | {"custom_text": True},
    "clip-bidirectional": model_config(no_causal_mask=True),
}
FORWARDS = {
    **dict.fromkeys(TRIMMED, CausalForward),
    **dict.fromkeys(CLASS_TOKEN, ClassTokenForward),
    **dict.fromkeys(PLAIN, PlainForward),
}


def encoder_of(folder: Path, **options: Any) -> OpenClipEncoder:
    return OpenClipEncoder(f"local-dir:{folder}", device="cpu", **options)


def expected_of(folder: Path, texts: list[str]) -> torch.Tensor:
    model, _, tokenizer = reference(folder)
    with torch.inference_mode():
        features = model.encode_text(tokenizer(texts))
    return torch.nn.functional.normalize(features, dim=-1)


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("token_budget", [1, 64, 16384])
def test_equals_open_clip(name: str, token_budget: int, make_folder: Callable[..., Path]) -> None:
    folder = make_folder((TRIMMED | CLASS_TOKEN | PLAIN)[name])
    encoder = encoder_of(folder, token_budget=token_budget, towers=("text",))
    assert encoder._text_tower is not None
    assert type(encoder._text_tower.forward) is FORWARDS[name]
    encoding = encoder.encode_texts(CAPTIONS)
    expected = expected_of(folder, CAPTIONS)
    torch.testing.assert_close(encoding.embeddings, expected, atol=1e-5, rtol=0)
    assert encoding.embeddings.dtype == torch.float32
    assert encoding.truncated.tolist() == TRUNCATED
    # The captions differ enough for the comparison above to mean something. (First-position
    # pooling under a causal mask sees the start token only.)
    if name != "custom-first":
        assert (expected[0] - expected[9]).abs().max() > 1e-2


def test_trimming_spares_positions(make_folder: Callable[..., Path]) -> None:
    encoder = encoder_of(make_folder(model_config()), token_budget=10)
    lengths = []
    encoder._loaded.model.transformer.resblocks[0].register_forward_pre_hook(
        lambda _module, arguments: lengths.append(tuple(arguments[0].shape[:2]))
    )
    encoder.encode_texts(["dog", "the cat", "dog dog dog dog dog dog", "dog", "cat"])
    assert lengths == [(1, 8), (2, 4), (2, 3)]
    lengths.clear()
    encoder.encode_texts(["dog", "dog dog dog dog dog dog", "the dog", "dog"])
    assert lengths == [(1, 8), (2, 4), (1, 3)]


def test_default_tokenizer_and_architecture(architecture: str) -> None:
    encoder = OpenClipEncoder(architecture, "random", device="cpu", towers=("text",))
    texts = ["a photo of a dog", "", "dog " * 100]
    with torch.inference_mode():
        features = encoder._loaded.model.encode_text(encoder._loaded.tokenizer(texts))
    encoding = encoder.encode_texts(texts)
    expected = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(encoding.embeddings, expected, atol=1e-5, rtol=0)
    assert encoding.truncated.tolist() == [False, False, True]


def test_same_call_same_bits(make_folder: Callable[..., Path]) -> None:
    encoder = encoder_of(make_folder(model_config()))
    first, second = encoder.encode_texts(CAPTIONS), encoder.encode_texts(CAPTIONS)
    assert torch.equal(first.embeddings, second.embeddings)


def test_no_texts(make_folder: Callable[..., Path]) -> None:
    encoding = encoder_of(make_folder(model_config())).encode_texts([])
    assert encoding.embeddings.shape == (0, 16)
    assert encoding.truncated.shape == (0,)


def test_embeddings_can_be_changed_and_learned_from(make_folder: Callable[..., Path]) -> None:
    embeddings = encoder_of(make_folder(model_config())).encode_texts(["dog"]).embeddings
    embeddings *= 2
    weight = torch.ones(16, requires_grad=True)
    (embeddings * weight).sum().backward()
    assert weight.grad is not None


def test_bf16_is_near_fp32(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(model_config())
    exact = encoder_of(folder).encode_texts(CAPTIONS).embeddings
    rounded = encoder_of(folder, precision="bf16").encode_texts(CAPTIONS).embeddings
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact * rounded).sum(dim=1).min() > 0.999
    torch.testing.assert_close(rounded.norm(dim=1), torch.ones(len(CAPTIONS)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    def encode(device: str, precision: str) -> torch.Tensor:
        encoder = OpenClipEncoder(
            "ViT-B-32", "random", device=device, precision=precision, towers=("text",)
        )
        return encoder.encode_texts([f"{word} " * k for k in range(1, 70) for word in ("dog", "a")])

    exact = encode("cpu", "fp32").embeddings
    torch.testing.assert_close(encode("cuda", "fp32").embeddings.cpu(), exact, atol=1e-4, rtol=0)
    rounded = encode("cuda", "bf16").embeddings.cpu()
    assert (exact * rounded).sum(dim=1).min() > 0.995


def test_memory_running_out_halves_the_budget(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(model_config())
    texts = CAPTIONS + ["cat " * CONTEXT] * 12
    expected = encoder_of(folder).encode_texts(texts).embeddings
    encoder = encoder_of(folder)
    tower = encoder._text_tower
    assert tower is not None
    forward = type(tower.forward).embed
    sizes = []

    def scarce(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(tokens.numel())
        if tokens.numel() > 2 * CONTEXT:
            raise torch.OutOfMemoryError("pretended")
        return forward(self, tokens)

    monkeypatch.setattr(type(tower.forward), "embed", scarce)
    embeddings = encoder.encode_texts(texts).embeddings
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    assert sizes[:4] == [16 * CONTEXT, 8 * CONTEXT, 4 * CONTEXT, 2 * CONTEXT]
    # The smaller budget is kept: no further attempt fails, in this call or the next.
    assert max(sizes[3:]) <= 2 * CONTEXT
    encoder.encode_texts(texts)
    assert max(sizes[3:]) <= 2 * CONTEXT


def test_one_caption_that_does_not_fit_is_an_error(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(make_folder(model_config()))

    def none_left(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("pretended")

    tower = encoder._text_tower
    assert tower is not None
    monkeypatch.setattr(type(tower.forward), "embed", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode_texts(CAPTIONS)


def test_truncated_is_exact_at_the_edge(make_folder: Callable[..., Path]) -> None:
    encoder = encoder_of(make_folder(model_config()))
    texts = ["dog " * k for k in range(CONTEXT - 4, CONTEXT + 4)]
    truncated = encoder.encode_texts(texts).truncated
    assert truncated.dtype == np.bool_
    assert truncated.tolist() == [k + 2 > CONTEXT for k in range(CONTEXT - 4, CONTEXT + 4)]
