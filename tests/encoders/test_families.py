"""Every family of open_clip: its embeddings are open_clip's own, and what is trimmed is told.

The models are small, their weights random.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from pipeline.encoders import OpenClipEncoder
from pipeline.encoders.text_forwards import (
    CausalForward,
    ClassTokenForward,
    MaskedPaddingForward,
    PlainForward,
    text_forward,
)
from pipeline.storage import embeddings_of, verify
from tests.cluster.samples import dataset_rows, execute, small_config
from tests.encoders.conftest import CAPTIONS, COCA, CONTEXT, model_config, picture, reference

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
WORDS = [PAD, BEGIN, END, UNKNOWN, "the", "dog", "and", "cat", "red", "ran", "!", "a"]
PICTURES = [picture(0), picture(1, size=(90, 30))]

SMALL = {
    "vocab_size": len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = SMALL | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "mt5": SMALL
    | {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    | {"decoder_start_token_id": 0},
    "m2m_100": SMALL
    | {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    | {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48}
    | {"decoder_start_token_id": 2},
}
POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")

TIMM = {"timm_model_pretrained": False, "timm_proj": None}
FAMILIES: dict[str, tuple[dict[str, Any], type]] = {
    "CLIP": (model_config(), CausalForward),
    "CoCa": (COCA, ClassTokenForward),
    "SigLIP": (
        model_config(no_causal_mask=True, proj_bias=True, pool_type="last")
        | {"custom_text": True, "init_logit_bias": -10}
        | {"vision_cfg": TIMM | {"timm_model_name": "test_vit3", "timm_pool": "map"}}
        | {"embed_dim": 96},
        PlainForward,
    ),
    "MobileCLIP-S": (
        model_config(no_causal_mask=True)
        | {"custom_text": True}
        | {"vision_cfg": TIMM | {"timm_model_name": "fastvit_mci0", "timm_pool": "avg"}},
        PlainForward,
    ),
    "MobileCLIP-B": (
        model_config(no_causal_mask=False)
        | {"custom_text": True}
        | {"vision_cfg": TIMM | {"timm_model_name": "test_vit", "timm_pool": "token"}},
        CausalForward,
    ),
    "EVA": (
        model_config()
        | {"custom_text": True}
        | {"vision_cfg": TIMM | {"timm_model_name": "eva02_tiny_patch14_224"}},
        CausalForward,
    ),
}
SIZES = {"test_vit3": 160, "test_vit": 160, "fastvit_mci0": 256, "eva02_tiny_patch14_224": 224}
for _config, _ in FAMILIES.values():
    _vision = _config["vision_cfg"]
    if "timm_model_name" in _vision:
        _vision["image_size"] = SIZES[_vision["timm_model_name"]]
        _vision.setdefault("timm_pool", "token")
        if _vision["timm_pool"] == "map":
            _vision["timm_proj"] = "none"


def write_tokenizer(folder: Path, *, side: str = "right") -> None:
    """Write a tokenizer of WORDS beside the model, in the form that transformers reads."""
    inner = Tokenizer(models.WordLevel({one: row for row, one in enumerate(WORDS)}, UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 1), (END, 2)]
    )
    special = {"pad_token": PAD, "bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN}
    PreTrainedTokenizerFast(tokenizer_object=inner, padding_side=side, **special).save_pretrained(
        folder
    )


def write_weights(folder: Path, *, spread: float) -> None:
    """Write weights that differ enough for a wrong position or mask to show."""
    name = f"local-dir:{folder}"
    torch.manual_seed(3)
    model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    generator = torch.Generator().manual_seed(4)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("gamma"):  # layer scales, next to nothing at first
            value = torch.full_like(value, 0.5)
        elif key.startswith("text.") and value.is_floating_point():
            value = torch.randn(value.shape, generator=generator) * spread
            if "norm" in key.lower() and key.endswith("weight"):
                value += 1
        state[key] = value.contiguous().clone()
    save_file(state, folder / "open_clip_model.safetensors")


@pytest.fixture
def hugging_face(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model with a Hugging Face text tower; no network is used."""

    def make(
        model_type: str,
        *,
        pooler: str | None = None,
        side: str = "right",
        whole: dict[str, Any] | None = None,
        name: str = "model",
        **text: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        write_tokenizer(folder, side=side)
        settings = HUGGING_FACE[model_type] | text
        transformers.AutoConfig.for_model(model_type, **settings).save_pretrained(folder)
        config = model_config() | (whole or {})
        config["text_cfg"] = {
            "hf_model_name": str(folder),
            "hf_tokenizer_name": "beside",
            "hf_proj_type": "mlp",
            "hf_pooler_type": pooler,
            "context_length": CONTEXT,
        } | (whole or {}).get("text_cfg", {})
        document = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
        (folder / "open_clip_config.json").write_text(json.dumps(document))
        write_weights(folder, spread=0.3)
        return folder

    return make


def encoder_of(folder: Path, **options: Any) -> OpenClipEncoder:
    return OpenClipEncoder(f"local-dir:{folder}", device="cpu", **options)


def check_texts(folder: Path, forward: type, **options: Any) -> tuple[Any, torch.Tensor]:
    """Check that captions' embeddings are open_clip's; returns the encoder and the embeddings."""
    model, _, _ = reference_of(folder)
    encoder = encoder_of(folder, towers=("text",), **options)
    tower = encoder._text_tower
    assert tower is not None
    assert type(tower.forward) is forward
    with torch.inference_mode():
        expected = normalize(model.encode_text(encoder._loaded.tokenizer(CAPTIONS)), dim=-1)
    found = encoder.encode_texts(CAPTIONS).embeddings
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[9]).abs().max() > 1e-2
    return encoder, found


def reference_of(folder: Path) -> tuple[Any, Any, Any]:
    if (folder / "vocabulary.txt.gz").exists():
        return reference(folder)
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained_text=False)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def positions(encoder: OpenClipEncoder, module: Any, texts: list[str]) -> list[int]:
    """Return how many positions of the tower each micro-batch goes through."""
    seen: list[int] = []

    def note(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x = arguments[0] if arguments else keywords["hidden_states"]
        seen.append(x.shape[1])

    with module.register_forward_pre_hook(note, with_kwargs=True):
        encoder.encode_texts(texts)
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_equals_open_clip(name: str, make_folder: Callable[..., Path]) -> None:
    config, forward = FAMILIES[name]
    folder = make_folder(config)
    if "timm_model_name" in config["vision_cfg"]:
        write_weights(folder, spread=0.4)
    check_texts(folder, forward)
    model, preprocess, _ = reference_of(folder)
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(one))) for one in PICTURES])
    with torch.inference_mode():
        expected = normalize(model.encode_image(pixels), dim=-1)
    found = encoder_of(folder, towers=("image",)).encode_images(PICTURES).embeddings
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("model_type", HUGGING_FACE)
def test_a_hugging_face_tower_equals_open_clip(
    model_type: str, pooler: str, hugging_face: Callable[..., Path]
) -> None:
    folder = hugging_face(model_type, pooler=pooler)
    encoder, whole = check_texts(folder, MaskedPaddingForward)
    _, by_one = check_texts(folder, MaskedPaddingForward, token_budget=1)
    torch.testing.assert_close(by_one, whole, atol=1e-5, rtol=0)
    # Begin and end tokens with the words; nothing of the padding up to CONTEXT.
    first = first_layer(encoder)
    assert positions(encoder, first, ["dog", "the dog and the cat", "cat"]) == [7, 3]
    assert positions(encoder, first, ["dog " * CONTEXT]) == [CONTEXT]


def first_layer(encoder: OpenClipEncoder) -> Any:
    transformer = encoder._loaded.model.text.transformer
    if hasattr(transformer, "block"):
        return transformer.block[0]
    return (transformer.layers if hasattr(transformer, "layers") else transformer.encoder.layer)[0]


def test_padding_on_the_left_is_kept(hugging_face: Callable[..., Path]) -> None:
    encoder, _ = check_texts(hugging_face("bert", side="left"), MaskedPaddingForward)
    assert positions(encoder, first_layer(encoder), ["dog", "cat"]) == [CONTEXT]


def test_coca_with_a_hugging_face_tower(hugging_face: Callable[..., Path]) -> None:
    whole = COCA | {"text_cfg": {"output_tokens": True}}
    encoder, _ = check_texts(hugging_face("roberta", whole=whole), MaskedPaddingForward)
    assert positions(encoder, first_layer(encoder), ["dog"]) == [3]


def test_a_row_of_nothing_but_padding_keeps_all_of_it(hugging_face: Callable[..., Path]) -> None:
    folder = hugging_face("bert", pooler="cls_last_hidden_state_pooler")
    model, _, _ = reference_of(folder)
    forward = text_forward(model)
    tokens = torch.tensor([[0] * CONTEXT, [1, 5, 0, 5, 2] + [0] * (CONTEXT - 5)])
    assert forward.lengths(tokens).tolist() == [CONTEXT, 5]
    with torch.inference_mode():
        torch.testing.assert_close(forward.embed(tokens[:1]), model.encode_text(tokens)[:1])
        cut = forward.embed(tokens[1:, :5])
        torch.testing.assert_close(cut, model.encode_text(tokens)[1:], atol=1e-5, rtol=0)


def test_other_hugging_face_towers_are_not_trimmed(hugging_face: Callable[..., Path]) -> None:
    model, _, _ = reference_of(hugging_face("bert"))
    config = model.text.config
    assert type(text_forward(model)) is MaskedPaddingForward
    config.pad_token_id = None
    assert type(text_forward(model)) is PlainForward
    config.pad_token_id, config.model_type = 0, "longformer"
    assert type(text_forward(model)) is PlainForward
    config.model_type = "bert"
    model.text.pooler = torch.nn.Identity()
    assert type(text_forward(model)) is PlainForward


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("correct", [True, False])
def test_the_class_token_sees_what_it_saw(
    causal: bool, correct: bool, make_folder: Callable[..., Path]
) -> None:
    """Token 0 pads and is a letter, too; open_clip has two ways to mask it."""
    text = COCA["text_cfg"] | {"no_causal_mask": not causal}
    folder = make_folder(COCA | {"text_cfg": text})
    model, _, _ = reference_of(folder)
    model.text.correct_cls_mask = correct
    generator = torch.Generator().manual_seed(0)
    forward = text_forward(model)
    assert type(forward) is ClassTokenForward
    for length in (1, 2, 5, CONTEXT - 1, CONTEXT):
        tokens = torch.zeros(3, CONTEXT, dtype=torch.int64)
        tokens[:, :length] = torch.randint(0, 3, (3, length), generator=generator)
        tokens[:, 0], tokens[0, length - 1] = 4, 4
        needed = int(forward.lengths(tokens).max())
        assert needed == min(length + 1, CONTEXT)
        with torch.inference_mode():
            found, expected = forward.embed(tokens[:, :needed]), model.encode_text(tokens)
        torch.testing.assert_close(normalize(found, dim=-1), expected, atol=1e-5, rtol=0)


def test_coca_spares_positions(make_folder: Callable[..., Path]) -> None:
    encoder = encoder_of(make_folder(COCA))
    first = encoder._loaded.model.text.transformer.resblocks[0]
    # Begin and end tokens, one position of the padding, the class token.
    assert positions(encoder, first, ["dog", "the cat", "dog " * 8]) == [12, 6]


@pytest.mark.parametrize("name", ["SigLIP", "MobileCLIP-S"])
def test_towers_that_read_their_padding_get_it(name: str, make_folder: Callable[..., Path]) -> None:
    encoder = encoder_of(make_folder(FAMILIES[name][0]), towers=("text",))
    first = encoder._loaded.model.text.transformer.resblocks[0]
    assert positions(encoder, first, ["dog", "the cat"]) == [CONTEXT]


def test_the_fingerprint_sees_a_hugging_face_towers_own_config(
    hugging_face: Callable[..., Path],
) -> None:
    def fingerprint(name: str, **text: Any) -> str:
        return encoder_of(hugging_face("bert", name=name, **text)).fingerprint

    same = fingerprint("here")
    assert fingerprint("there") == same  # wherever it lies
    assert fingerprint("other", hidden_act="relu") != same


@pytest.mark.parametrize("name", [*FAMILIES, "Hugging Face"])
def test_a_family_runs_to_a_verified_dataset(
    local_ray: None,
    name: str,
    make_folder: Callable[..., Path],
    hugging_face: Callable[..., Path],
    tmp_path: Path,
) -> None:
    if name == "Hugging Face":
        folder = hugging_face("roberta", pooler="mean_pooler")
    else:
        folder = make_folder(FAMILIES[name][0])
        if "timm_model_name" in FAMILIES[name][0]["vision_cfg"]:
            write_weights(folder, spread=0.4)
    texts = [f"{one} {other}" for one in WORDS[4:10] for other in WORDS[4:9]]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(picture(number))
    config = small_config(
        tmp_path / "run",
        text={"path": str(tmp_path / "captions.txt")},
        image={"path": str(tmp_path / "pictures")},
        encoder={"model": f"local-dir:{folder}"},
        align={"method": "centroid"},
        output={"embeddings_dtype": "float32"},
    )
    assert execute(config)["rows"] == len(texts)
    assert verify(str(tmp_path / "run" / "dataset")).problems == ()
    _, table = dataset_rows(tmp_path / "run" / "embeddings" / "text")
    stored = dict(zip(table.column("text").to_pylist(), embeddings_of(table), strict=True))
    encoded = encoder_of(folder, towers=("text",)).encode_texts(texts).embeddings.numpy()
    for text, embedding in zip(texts, encoded, strict=True):
        np.testing.assert_allclose(stored[text], embedding, atol=1e-5)
