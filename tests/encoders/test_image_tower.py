"""Images come out as open_clip's own preprocessing and tower make them; bad ones are told apart."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from webdataset.autodecode import imagehandler

from pipeline.encoders import OpenClipEncoder, image_tower
from tests.encoders.conftest import COCA, model_config, picture, reference
from tests.pictures import huge_png


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
    monkeypatch.setattr(image_tower, "MOST_PIXELS", 50_000)
    good = picture(0)
    images = [
        b"",
        good,
        b"not an image",
        good[: len(good) // 2],
        picture(1, form="JPEG")[:400],
        picture(2, size=(251, 200)),
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


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Image.Image], torch.Tensor]:
    """Return open_clip's own preprocessing to 32 x 32, which makes RGB of any image itself."""
    import open_clip

    return open_clip.image_transform(32, is_train=False)


def drawn(mode: str = "RGB", seed: int = 1, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.open(io.BytesIO(picture(seed, size=size))).convert(mode)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_an_image_cut_short_is_undecodable(
    preprocess: Callable[[Image.Image], torch.Tensor], form: str
) -> None:
    whole = encoded(drawn(size=(120, 90)), form)
    assert image_tower.decode(whole, preprocess, 32) is not None
    for share in (0.02, 0.3, 0.6, 0.9):
        assert image_tower.decode(whole[: int(share * len(whole))], preprocess, 32) is None


@pytest.mark.parametrize("form", ["PDF", "EPS", "ICO", "TGA", "svg", "html", "mp4"])
def test_other_types_are_undecodable_whatever_their_name(
    preprocess: Callable[[Image.Image], torch.Tensor], form: str
) -> None:
    texts = {
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
        "html": b"<!DOCTYPE html><title>404 Not Found</title>" * 20,
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(2000),
    }
    content = texts[form] if form in texts else encoded(drawn(), form)
    if form not in {*texts, "PDF"}:
        Image.open(io.BytesIO(content))  # PIL itself would take it
    assert image_tower.decode(content, preprocess, 32) is None


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("I;16", "PNG"),
        ("I;16", "TIFF"),
        ("F", "TIFF"),
        ("P", "PNG"),
        ("PA", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("LA", "PNG"),
        ("L", "JPEG"),
        ("1", "PNG"),
    ],
)
def test_colours_are_what_open_clips_own_loader_makes_of_them(
    preprocess: Callable[[Image.Image], torch.Tensor], mode: str, form: str
) -> None:
    if mode == "PA":  # a palette of which one colour is transparent
        buffer = io.BytesIO()
        drawn("P").save(buffer, format=form, transparency=3)
        content = buffer.getvalue()
    elif mode == "RGBA":
        image = drawn("RGBA")
        image.putalpha(drawn("L", seed=2))
        content = encoded(image, form)
    else:
        content = encoded(drawn("L").convert(mode) if mode == "I;16" else drawn(mode), form)
    found = image_tower.decode(content, preprocess, 32)
    assert found is not None
    # It trains on tars that webdataset decodes like this.
    loaded = imagehandler("pilrgb")("000.jpg", content)
    assert torch.equal(found, preprocess(loaded))
    assert found.std() > 0.1


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken(
    preprocess: Callable[[Image.Image], torch.Tensor], form: str
) -> None:
    buffer = io.BytesIO()
    lossless = {"lossless": True} if form == "WEBP" else {}
    first, second = drawn("L", seed=1), drawn("L", seed=2)
    first.save(buffer, format=form, save_all=True, append_images=[second], **lossless)
    found = image_tower.decode(buffer.getvalue(), preprocess, 32)
    assert found is not None
    torch.testing.assert_close(found, preprocess(first), atol=0.02, rtol=0)
    assert (found - preprocess(second)).abs().max() > 0.5


def test_orientation_is_what_is_stored(preprocess: Callable[[Image.Image], torch.Tensor]) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    buffer = io.BytesIO()
    drawn().save(buffer, format="PNG", exif=turned)
    assert Image.open(io.BytesIO(buffer.getvalue())).getexif()[0x0112] == 6
    found = image_tower.decode(buffer.getvalue(), preprocess, 32)
    assert found is not None
    assert torch.equal(found, preprocess(drawn()))


def lying(form: str) -> bytes:
    """Return a small image whose header claims 16,000 x 16,000 pixels, or nearly."""
    if form == "WEBP":  # an animation, whose frames may be smaller than its canvas
        buffer = io.BytesIO()
        drawn().save(buffer, format=form, save_all=True, append_images=[drawn(seed=2)])
        data, place, side = buffer.getvalue(), buffer.getvalue().index(b"VP8X") + 12, "<HBHB"
        return data[:place] + struct.pack(side, 15_999, 0, 15_999, 0) + data[place + 6 :]
    data = encoded(drawn(), form)
    old, side = {
        "JPEG": (struct.pack(">HH", 40, 48), ">HH"),
        "GIF": (struct.pack("<HH", 48, 40), "<HH"),
        "BMP": (struct.pack("<ii", 48, 40), "<ii"),
        "TIFF": (b"", "<I"),
        "PPM": (b"48 40", ""),
        "JPEG2000": (struct.pack(">II", 48, 40), ">II"),
    }[form]
    if form == "PPM":
        return data.replace(old, b"16000 16000", 1)
    if form == "TIFF":
        for tag, size in ((256, 48), (257, 40)):
            for kind, number in ((3, "H"), (4, "I")):
                before = struct.pack(f"<HHI{number}", tag, kind, 1, size)
                after = struct.pack(f"<HHI{number}", tag, kind, 1, 16_000)
                data = data.replace(before, after)
        return data
    assert old in data
    return data.replace(old, struct.pack(side, 16_000, 16_000))


_MEMORY = """
import io, json, pathlib, resource, sys
from torchvision.transforms.functional import pil_to_tensor
from pipeline.encoders.image_tower import decode
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
small, *bombs = [pathlib.Path(path).read_bytes() for path in sys.argv[1:]]
assert decode(small, pil_to_tensor, 32) is not None
before = peak()
print(json.dumps([[decode(one, pil_to_tensor, 32) is None, peak() - before] for one in bombs]))
"""


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    forms = ["JPEG", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "WEBP"]
    bombs = [lying(form) for form in forms]
    # Where PIL only warns, and where it raises; the last is one that is allowed, to see it counted.
    bombs += [huge_png(12_000, 12_000), huge_png(20_000, 20_000), huge_png(9_000, 9_000)]
    files = [picture(0), *bombs]
    for number, content in enumerate(files):
        (tmp_path / str(number)).write_bytes(content)
    paths = [str(tmp_path / str(number)) for number in range(len(files))]
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, *paths], capture_output=True, text=True, check=True
    )
    *refused, allowed = json.loads(done.stdout)
    assert [one for one, _ in refused] == [True] * len(refused)
    assert max(taken for _, taken in refused) < 64, refused
    assert allowed[0] is False
    assert allowed[1] > 100
    assert "Warning" not in done.stderr


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
