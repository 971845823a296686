"""Finding, loading and naming an encoder; what goes wrong is said in one line."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.encoders import OpenClipEncoder, loading, quick_identity
from tests.encoders.conftest import VOCABULARY_SIZE, model_config, picture


def encoder_of(folder: Path, **options: Any) -> OpenClipEncoder:
    return OpenClipEncoder(f"local-dir:{folder}", device="cpu", **options)


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(model_config())


def test_importing_the_room_is_cheap() -> None:
    code = "import sys, pipeline.encoders; print({'torch', 'open_clip'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_description(folder: Path) -> None:
    encoder = encoder_of(folder, precision="bf16")
    assert encoder.dimension == 16
    assert json.loads(json.dumps(encoder.describe())) == {
        "model": f"local-dir:{folder}",
        "pretrained": None,
        "fingerprint": encoder.fingerprint,
        "dimension": 16,
        "context_length": 24,
        "precision": "bf16",
    }


def test_demo_is_the_folder_in_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(pipeline.__file__).parent
    assert package / "demo" / "encoder" == loading.DEMO_FOLDER
    monkeypatch.setattr(loading, "DEMO_FOLDER", folder)
    assert OpenClipEncoder("demo", device="cpu").fingerprint == encoder_of(folder).fingerprint


def test_fingerprint_ignores_place_towers_and_precision(
    folder: Path, make_folder: Callable[..., Path]
) -> None:
    fingerprint = encoder_of(folder).fingerprint
    assert len(bytes.fromhex(fingerprint)) == 32
    same = make_folder(model_config(), "elsewhere")
    assert encoder_of(same, towers=("text",)).fingerprint == fingerprint
    assert encoder_of(same, towers=("image",), precision="bf16").fingerprint == fingerprint


def test_fingerprint_sees_weights_config_vocabulary_and_preprocessing(
    folder: Path, make_folder: Callable[..., Path]
) -> None:
    seen = {encoder_of(folder).fingerprint}
    seen.add(encoder_of(make_folder(model_config(), "weights", seed=1)).fingerprint)
    seen.add(encoder_of(make_folder(model_config() | {"quick_gelu": True}, "gelu")).fingerprint)
    vocabulary = make_folder(model_config(), "vocabulary")
    with gzip.open(vocabulary / "vocabulary.txt.gz", "rt") as file:
        lines = file.read().split("\n")
    with gzip.open(vocabulary / "vocabulary.txt.gz", "wt") as file:
        file.write("\n".join([*lines[:-1], "x y"]))
    seen.add(encoder_of(vocabulary).fingerprint)
    preprocess = make_folder(model_config(), "preprocess")
    config_file = preprocess / "open_clip_config.json"
    config_file.write_text(config_file.read_text().replace("0.5", "0.4"))
    seen.add(encoder_of(preprocess).fingerprint)
    assert len(seen) == 5


def test_the_quick_identity_sees_every_file_of_the_folder(folder: Path) -> None:
    name = f"local-dir:{folder}"
    seen = [quick_identity(name, None)]
    assert quick_identity(name, None) == seen[0]
    for file in sorted(folder.iterdir()):
        os.utime(file, ns=(1, 1))
        seen.append(quick_identity(name, None))
    assert len(seen) == 4
    assert len({json.dumps(one) for one in seen}) == 4


def test_fingerprint_refuses_weights_that_changed_meanwhile(folder: Path) -> None:
    encoder = encoder_of(folder)
    os.utime(folder / "open_clip_model.safetensors", ns=(1, 1))
    with pytest.raises(ValueError, match="changed after"):
        _ = encoder.fingerprint


def test_a_dropped_tower_gives_its_parameters_back(folder: Path) -> None:
    full = encoder_of(folder)
    text, image = encoder_of(folder, towers=("text",)), encoder_of(folder, towers=("image",))

    def parameters(encoder: OpenClipEncoder) -> int:
        return sum(p.numel() for p in encoder._loaded.model.parameters())

    # The logit scale stays with both.
    assert parameters(text) + parameters(image) == parameters(full) + 1
    assert text.encode_texts(["dog"]).embeddings.equal(full.encode_texts(["dog"]).embeddings)
    images = [picture(0)]
    assert image.encode_images(images).embeddings.equal(full.encode_images(images).embeddings)
    with pytest.raises(ValueError, match="without its image tower"):
        text.encode_images(images)
    with pytest.raises(ValueError, match="without its text tower"):
        image.encode_texts(["dog"])


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(
    architecture: str,
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = OpenClipEncoder(architecture, "random", device="cpu")
    assert torch.rand(1) == expected
    second = OpenClipEncoder(architecture, "random", device="cpu")
    assert first.fingerprint == second.fingerprint
    encodings = [encoder.encode_texts(["dog"]).embeddings for encoder in (first, second)]
    assert torch.equal(*encodings)


def test_a_weights_file_beside_an_architecture(tmp_path: Path, architecture: str) -> None:
    random = OpenClipEncoder(architecture, "random", device="cpu")
    state = random._loaded.model.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pt")
    expected = random.encode_texts(["dog"]).embeddings
    for name in ("weights.safetensors", "weights.pt"):
        path = str(tmp_path / name)
        encoder = OpenClipEncoder(architecture, path, device="cpu", towers=("text",))
        assert encoder.encode_texts(["dog"]).embeddings.equal(expected)
        assert encoder.describe()["pretrained"] == path


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["PAYLOAD_FOLDER"],)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_not_run(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYLOAD_FOLDER", str(tmp_path / "ran"))
    # Not even where the environment tells torch to trust files by default.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": Payload()}, tmp_path / "zip.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Payload()))
    for name in ("zip.pt", "plain.bin"):
        with pytest.raises(ValueError, match=name):
            OpenClipEncoder(architecture, str(tmp_path / name), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-23", "random", r"no architecture 'ViT-B-23'; did you mean .*ViT-B-32"),
        ("qqqqqqqqq", None, r"see open_clip.list_models\(\)"),
        ("ViT-B-32", None, r"needs weights; .*laion2b_s34b_b79k"),
        ("ViT-B-32", "laion3b", r"'laion3b' is neither a file nor a known tag .*laion2b_s34b_b79k"),
        ("ViT-B-16-SigLIP", "random", "ViT-B-16-SigLIP (needs a package|could not be loaded)"),
        ("local-dir:/nowhere", None, "no folder /nowhere"),
        ("local-dir:/nowhere", "openai", "remove encoder.pretrained"),
        ("demo", "openai", "remove encoder.pretrained"),
    ],
)
def test_unknown_models(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        OpenClipEncoder(model, pretrained, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "'fp16' is not one of fp32, bf16"),
        ({"device": "quantum"}, "'quantum' is no torch device"),
        ({"device": "cuda:99"}, "no GPU 'cuda:99'"),
        ({"token_budget": 0}, "token_budget: 0"),
        ({"image_batch": -1}, "image_batch: -1"),
        ({"towers": ()}, "not a choice of text, image"),
        ({"towers": ("sound",)}, "not a choice of text, image"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenClipEncoder("demo", **options)


def damage_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "open_clip_config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def trust_code(document: dict[str, Any]) -> None:
    document["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "open_clip_config.json").unlink(), "has no open_clip_config.json"),
    "no weights": (
        lambda f: (f / "open_clip_model.safetensors").unlink(),
        "has no open_clip_model.safetensors",
    ),
    "no vocabulary": (lambda f: (f / "vocabulary.txt.gz").unlink(), "no vocabulary .*gz"),
    "not JSON": (lambda f: (f / "open_clip_config.json").write_text("{"), "not open_clip's config"),
    "not a config": (
        lambda f: (f / "open_clip_config.json").write_text('{"model_cfg": 3}'),
        "not open_clip's config",
    ),
    "unknown key": (
        lambda f: damage_config(f, lambda d: d["model_cfg"].update(colour=1)),
        "could not be loaded: .*colour",
    ),
    "other shape": (
        lambda f: damage_config(f, lambda d: d["model_cfg"].update(embed_dim=8)),
        "could not be loaded",
    ),
    "small vocabulary": (
        lambda f: damage_and_shrink(f, VOCABULARY_SIZE - 1),
        f"has {VOCABULARY_SIZE} tokens but the model knows {VOCABULARY_SIZE - 1}",
    ),
    "broken weights": (
        lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\0" * 100),
        "open_clip_model.safetensors could not be loaded",
    ),
    "code": (lambda f: damage_config(f, trust_code), "would run code"),
}


def damage_and_shrink(folder: Path, size: int) -> None:
    damage_config(folder, lambda d: d["model_cfg"]["text_cfg"].update(vocab_size=size))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:size].contiguous()
    save_file(weights, folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        encoder_of(folder)
    assert "\n" not in str(caught.value)
