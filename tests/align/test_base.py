from dataclasses import replace

import pytest
import torch

from pipeline.align import create_aligner
from pipeline.align.base import NotFittedError, check_clouds, normalise
from pipeline.align.settings import METHODS, PAIRED_METHODS
from pipeline.geometry.mixing import MIXING_ROWS
from pipeline.geometry.moments import MeanSum, Moments
from tests.align.clouds import SMALL, WIDTH, clouds, fitted

EVERY = pytest.mark.parametrize("method", METHODS)
OF_TEXT = [method for method in METHODS if method not in PAIRED_METHODS]
EVERY_OF_TEXT = pytest.mark.parametrize("method", OF_TEXT)
CALIBRATED = [method for method in OF_TEXT if create_aligner(method).calibrates]


def with_row(cloud, value):
    changed = cloud.clone()
    changed[3] = value
    return changed


IMAGE, TEXT = clouds(40, 50)
BAD = {
    "image-nan": (with_row(IMAGE, torch.nan), TEXT, "image embeddings hold NaN"),
    "text-infinite": (IMAGE, with_row(TEXT, torch.inf), "text embeddings hold NaN"),
    "image-zero": (with_row(IMAGE, 0.0), TEXT, "image embeddings hold zero rows"),
    "text-zero": (IMAGE, with_row(TEXT, 0.0), "text embeddings hold zero rows"),
    "image-empty": (IMAGE[:0], TEXT, "image embeddings must be"),
    "text-empty": (IMAGE, TEXT[:0], "text embeddings must be"),
    "one-row": (IMAGE[0], TEXT, "image embeddings must be"),
    "widths": (IMAGE[:, :-2], TEXT, f"width {WIDTH - 2}, text embeddings {WIDTH}"),
}


@EVERY
@pytest.mark.parametrize("case", BAD)
def test_unusable_clouds_say_why(method, case):
    image, text, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        create_aligner(method, SMALL).fit(image, text)


def test_usable_clouds_pass():
    check_clouds(IMAGE, TEXT)
    check_clouds(IMAGE.half(), TEXT.double())


@EVERY_OF_TEXT
def test_transform_before_fit(method):
    with pytest.raises(NotFittedError, match=f"the {method} aligner is not fitted: call fit first"):
        create_aligner(method).transform(TEXT)


@EVERY_OF_TEXT
@pytest.mark.parametrize("text", [TEXT[:, 1:], TEXT[0]], ids=["width", "one-row"])
def test_transform_of_another_shape(method, text):
    with pytest.raises(ValueError, match=f"fitted on width {WIDTH}"):
        fitted(method).transform(text)


@EVERY_OF_TEXT
def test_transform_wants_an_id_for_each_row(method):
    with pytest.raises(ValueError, match="2 ids for 50 text embeddings"):
        fitted(method).transform(TEXT, ["a", "b"])


@EVERY_OF_TEXT
def test_transform_gives_unit_float32_rows_whatever_the_batch(method):
    aligner = fitted(method)
    rows = aligner.transform(TEXT.double())
    assert rows.dtype == torch.float32
    assert rows.shape == TEXT.shape
    of_unit_norm = torch.allclose(rows.norm(dim=1), torch.ones(len(TEXT)), atol=1e-5)
    assert of_unit_norm == aligner.unit_rows == (method != "unicorn")
    torch.testing.assert_close(aligner.transform(TEXT[:7]), rows[:7])
    assert aligner.transform(TEXT[:0]).shape == (0, WIDTH)
    assert torch.isfinite(aligner.transform(TEXT.half())).all()


@EVERY_OF_TEXT
def test_two_fits_give_the_same_bits(method):
    assert torch.equal(fitted(method).transform(TEXT), fitted(method).transform(TEXT))


def test_the_methods_that_calibrate():
    bures = {"bures-block", "bures-subspace", "bures-gromov"}
    assert {m for m in CALIBRATED if not m.startswith("anisoalign")} == {"realign"} | bures


def test_calibration_merges_over_parts_of_the_corpus():
    image, text = clouds()
    aligner = create_aligner("realign").fit_moments(Moments.of(image), Moments.of(text))
    with pytest.raises(NotFittedError):
        aligner.transform(text)
    state = MeanSum.zero(WIDTH)
    for part in text.split(100):
        state = state.merge(aligner.mean_of_mapped(part))
    torch.testing.assert_close(state.total, aligner.mean_of_mapped(text).total)
    aligner.calibrate(state)
    assert aligner.calibration.count == len(text)
    torch.testing.assert_close(aligner.transform(text), fitted("realign").transform(text))


@pytest.mark.parametrize("method", CALIBRATED)
def test_calibrated_mean_is_near_the_images(method):
    image, text = clouds()
    aligner = fitted(method)
    substitute_mean = aligner.transform(text).mean(dim=0)
    mapped_mean = aligner.map(text).mean(dim=0)
    assert (substitute_mean - image.mean(dim=0)).norm() < 0.03
    recentred = aligner.map(text) - mapped_mean + image.mean(dim=0)
    torch.testing.assert_close(aligner.transform(text), normalise(recentred), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", [m for m in OF_TEXT if m not in CALIBRATED])
def test_methods_without_calibration_ignore_it(method):
    aligner = fitted(method)
    before = aligner.transform(TEXT)
    aligner.calibrate(aligner.mean_of_mapped(TEXT))
    assert aligner.calibration is None
    assert torch.equal(aligner.transform(TEXT), before)


@EVERY
def test_only_some_look_at_image_rows_beside_the_moments(method):
    assert create_aligner(method, SMALL).images_wanted == (16_384 if method == "permuted" else 0)
    learned = create_aligner(method, replace(SMALL, mixing="learned")).images_wanted
    blocks = method.startswith("anisoalign") or method == "bures-block"
    assert learned == (MIXING_ROWS if blocks else 16_384 if method == "permuted" else 0)


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("anisoalign")])
def test_moments_and_the_images_wanted_are_all_that_a_fit_needs(method):
    aligner = create_aligner(method, SMALL)
    images = IMAGE if aligner.images_wanted else None
    aligner.fit_moments(Moments.of(IMAGE), Moments.of(TEXT), images)
    expected = create_aligner(method, SMALL).fit(IMAGE, TEXT).tensors()
    assert {name for name in expected if not name.startswith("calibration")} == set(
        aligner.tensors()
    )
    for name, tensor in aligner.tensors().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY_OF_TEXT
def test_the_device_changes_nothing(method):
    moved = create_aligner(method, SMALL).to("cuda").fit(*clouds())
    rows = moved.transform(TEXT).cpu()
    torch.testing.assert_close(rows, fitted(method).transform(TEXT), atol=1e-2, rtol=0)
    torch.testing.assert_close(moved.to("cpu").transform(TEXT), rows, atol=1e-4, rtol=0)


@EVERY_OF_TEXT
def test_the_texts_themselves_are_left_as_they_are(method):
    """Stages hand over memory that is not theirs to change."""
    aligner = fitted(method)
    text = TEXT.to(torch.float32)
    before = text.clone()
    aligner.transform(text, [f"id-{row}" for row in range(len(text))])
    aligner.mean_of_mapped(text)
    assert torch.equal(text, before)
