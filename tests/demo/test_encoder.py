"""The shipped encoder looks like a real CLIP on 2,000 pairs that it never saw in training."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

import pipeline.demo
from pipeline.demo.training import (
    CONTEXT_LENGTH,
    TEMPERATURE,
    VOCABULARY_NAME,
    Training,
    build_model,
    encoder_config,
    learn_merges,
    pixels,
    save_encoder,
    train,
    write_vocabulary,
)
from pipeline.demo.world import PAIR_INDEX, TRAINING_INDEX, Scene
from pipeline.encoders import OpenClipEncoder
from pipeline.geometry.alignment_metrics import local_mixing
from pipeline.geometry.diagnostics import gap_metrics, subspace_overlap

FOLDER = Path(pipeline.demo.__file__).parent / "encoder"
PAIRS = 2000
SEED = 77


class Pairs(NamedTuple):
    """Unit embeddings of held-out pairs `(n, d)`, and which captions were cut `(n,)`."""

    image: Tensor
    text: Tensor
    truncated: Tensor


def png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene.image()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def encoder() -> OpenClipEncoder:
    return OpenClipEncoder("demo", device="cpu")


@pytest.fixture(scope="module")
def pairs(encoder: OpenClipEncoder) -> Pairs:
    scenes = [Scene(SEED, PAIR_INDEX + row) for row in range(PAIRS)]
    images = encoder.encode_images([png(scene) for scene in scenes])
    texts = encoder.encode_texts([scene.caption() for scene in scenes])
    return Pairs(
        torch.as_tensor(images.embeddings).float(),
        torch.as_tensor(texts.embeddings).float(),
        torch.as_tensor(texts.truncated),
    )


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000


def test_embeddings_are_unit_rows(pairs: Pairs) -> None:
    assert pairs.image.shape == pairs.text.shape == (PAIRS, 128)
    for rows in (pairs.image, pairs.text):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(PAIRS), atol=1e-4, rtol=0)


def test_no_caption_is_cut_to_the_context(pairs: Pairs) -> None:
    assert not pairs.truncated.any()


def test_the_centroids_stay_apart(pairs: Pairs) -> None:
    """G_mu of metrics.md."""
    assert 0.4 <= float((pairs.image.mean(0) - pairs.text.mean(0)).norm()) <= 1.1


def test_the_residual_is_anisotropic(pairs: Pairs) -> None:
    """A_r: the gap is not a mere shift, and what remains is concentrated in few directions."""
    assert gap_metrics(pairs.image, pairs.text)["a_r"] >= 8


def test_the_dominant_subspaces_overlap(pairs: Pairs) -> None:
    """O_q against chance q / d, at q = d / 10."""
    dimension = pairs.image.shape[1]
    size = round(dimension / 10)
    image, text = (torch.cov(centred(rows).double().T) for rows in (pairs.image, pairs.text))
    assert subspace_overlap(image, text, size) >= 3 * size / dimension


def test_a_caption_finds_its_picture(pairs: Pairs) -> None:
    """Caption-to-image R@1 among 1,000."""
    scores = pairs.text[:1000] @ pairs.image[:1000].T
    assert float((scores.argmax(dim=1) == torch.arange(1000)).float().mean()) >= 0.15


def test_scaling_and_shifting_leave_work_for_better_methods(pairs: Pairs) -> None:
    """ReAlign's map (moments of these very rows) doesn't mix the clouds fully."""
    scale = (centred(pairs.image).square().sum() / centred(pairs.text).square().sum()).sqrt()
    moved = torch.nn.functional.normalize(scale * centred(pairs.text) + pairs.image.mean(0), dim=1)
    moved = torch.nn.functional.normalize(centred(moved) + pairs.image.mean(0), dim=1)
    assert max(local_mixing(pairs.image, moved)) < 0.7


def test_open_clip_loads_the_folder_by_itself(pairs: Pairs) -> None:
    """Its own factory, preprocessing and tokenizer give the embeddings that our loader gives."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    model.eval()
    config = json.loads((FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    name = config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["bpe_path"]
    tokenizer = open_clip.SimpleTokenizer(str(FOLDER / name), context_length=CONTEXT_LENGTH)
    scenes = [Scene(SEED, PAIR_INDEX + row) for row in range(16)]
    stack = torch.stack([preprocess(Image.fromarray(scene.image())) for scene in scenes])
    torch.testing.assert_close(stack, pixels([scene.image() for scene in scenes]))
    with torch.inference_mode():
        image = model.encode_image(stack, normalize=True)
        text = model.encode_text(tokenizer([scene.caption() for scene in scenes]), normalize=True)
    torch.testing.assert_close(image, pairs.image[:16], atol=1e-4, rtol=0)
    torch.testing.assert_close(text, pairs.text[:16], atol=1e-4, rtol=0)
    assert model.logit_scale.exp().item() == pytest.approx(1 / TEMPERATURE, rel=2e-3)
    assert config == encoder_config(tokenizer.vocab_size)


def test_training_is_a_function_of_its_seed(tmp_path: Path) -> None:
    """Two short trainings in one process give equal losses and equal files."""
    losses = []
    vocabulary = FOLDER / VOCABULARY_NAME
    tokenizer = open_clip.SimpleTokenizer(str(vocabulary), context_length=CONTEXT_LENGTH)
    config = encoder_config(tokenizer.vocab_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("a", "b"):
            model = build_model(config, seed=5)
            losses.append(train(model, tokenizer, Training(seed=5, steps=3, batch_rows=8)))
            (tmp_path / name).mkdir()
            save_encoder(model, config, tmp_path / name)
    finally:
        torch.set_num_threads(threads)
    assert losses[0] == losses[1]
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_shipped_vocabulary_is_the_worlds(tmp_path: Path) -> None:
    """Learnt merges come out byte for byte, and make every word of the world one token."""
    captions = [Scene(0, TRAINING_INDEX + row).caption() for row in range(20_000)]
    write_vocabulary(learn_merges(captions, 512), tmp_path / VOCABULARY_NAME)
    written = (tmp_path / VOCABULARY_NAME).read_bytes()
    assert gzip.decompress(written) == gzip.decompress((FOLDER / VOCABULARY_NAME).read_bytes())
    tokenizer = open_clip.SimpleTokenizer(str(FOLDER / VOCABULARY_NAME))
    words = {word for caption in captions for word in re.findall("[a-z]+", caption)}
    assert all(len(tokenizer.encode(word)) == 1 for word in words)
