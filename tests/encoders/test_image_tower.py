"""Images come out as open_clip's own preprocessing and tower make them; bad ones are told apart."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.encoders import OpenClipEncoder
from tests.encoders.conftest import COCA, model_config, picture, reference


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(model_config())


def encoder_of(folder: Path, **options: Any) -> OpenClipEncoder:
    return OpenClipEncoder(f"local-dir:{folder}", device="cpu", towers=("image",), **options)


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def pictures() -> list[bytes]:
    return [
        picture(0),
        picture(1, form="JPEG"),
        picture(2, size=(32, 90), form="WEBP"),
        encoded(Image.open(io.BytesIO(picture(3))).convert("P"), "GIF"),
        encoded(Image.open(io.BytesIO(picture(4))).convert("L"), "TIFF"),
        encoded(Image.open(io.BytesIO(picture(5))).convert("RGBA"), "PNG"),
        picture(6, size=(1, 1)),
    ]


@pytest.mark.parametrize("image_batch", [1, 3, 64])
def test_equals_open_clip(folder: Path, image_batch: int) -> None:
    model, preprocess, _ = reference(folder)
    images = pictures()
    pixels = [preprocess(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
    with torch.inference_mode():
        features = model.encode_image(torch.stack(pixels))
    encoding = encoder_of(folder, image_batch=image_batch).encode_images(images)
    expected = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(encoding.embeddings, expected, atol=1e-5, rtol=0)
    assert not encoding.undecodable.any()


def test_undecodable_rows_are_zero_and_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    good = picture(0)
    images = [
        b"",
        good,
        b"not an image",
        good[: len(good) // 2],
        picture(1, form="JPEG")[:400],
        picture(2, size=(400, 400)),  # more than twice PIL's limit
        picture(3, size=(1, 200)),  # few pixels, but 32 x 6400 once its short edge is scaled
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        good,
    ]
    expected = [True, False, True, True, True, True, True, True, False]
    for image_batch in (2, 64):
        encoding = encoder_of(folder, image_batch=image_batch).encode_images(images)
        assert encoding.undecodable.tolist() == expected
        assert (encoding.embeddings[encoding.undecodable] == 0).all()
        norms = encoding.embeddings[~encoding.undecodable].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(2))


def test_no_images(folder: Path) -> None:
    encoding = encoder_of(folder).encode_images([])
    assert encoding.embeddings.shape == (0, 16)
    assert encoding.undecodable.shape == (0,)


def test_coca_returns_embeddings_alone(make_folder: Callable[..., Path]) -> None:
    encoding = encoder_of(make_folder(COCA)).encode_images([picture(0)])
    assert encoding.embeddings.shape == (1, 16)


def test_memory_running_out_halves_the_batch(folder: Path) -> None:
    images = [picture(seed) for seed in range(9)]
    expected = encoder_of(folder).encode_images(images).embeddings
    encoder = encoder_of(folder)
    tower = encoder._image_tower
    assert tower is not None
    sizes = []

    def scarce(_module: Any, arguments: Any) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 2:
            raise torch.OutOfMemoryError("pretended")

    encoder._loaded.model.visual.register_forward_pre_hook(scarce)
    embeddings = encoder.encode_images(images).embeddings
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
