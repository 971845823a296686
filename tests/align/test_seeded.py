import numpy as np
import pytest
import torch

from pipeline.align import C3, Centroid, Permuted
from pipeline.align.seeded import gaussian_rows, row_keys
from pipeline.geometry.alignment_metrics import local_mixing
from pipeline.geometry.moments import Moments
from tests.align.clouds import WIDTH, clouds

IMAGE, TEXT = clouds()
IDS = [f"caption {row} ü" for row in range(len(TEXT))]
BOTH = pytest.mark.parametrize("method", [C3, Permuted])


@BOTH
def test_a_row_depends_on_its_id_and_not_on_its_company(method):
    aligner = method(seed=1).fit(IMAGE, TEXT)
    rows = aligner.transform(TEXT, IDS)
    order = torch.randperm(len(TEXT), generator=torch.Generator().manual_seed(0))
    shuffled = aligner.transform(TEXT[order], [IDS[row] for row in order])
    assert torch.equal(shuffled, rows[order])
    parts = [aligner.transform(TEXT[[row]], [IDS[row]]) for row in range(20)]
    assert torch.equal(torch.cat(parts), rows[:20])
    same = TEXT[:1].repeat(50, 1)
    assert len(aligner.transform(same, IDS[:50]).unique(dim=0)) > 40
    assert len(aligner.transform(same).unique(dim=0)) == 1


@BOTH
def test_another_seed_draws_otherwise(method):
    first, again, other = (method(seed=seed).fit(IMAGE, TEXT) for seed in (0, 0, 1))
    assert torch.equal(first.transform(TEXT, IDS), again.transform(TEXT, IDS))
    changed = (first.transform(TEXT, IDS) != other.transform(TEXT, IDS)).any(dim=1)
    assert changed.float().mean() > 0.9


def test_keys_are_digests_of_ids_or_of_float32_bytes():
    assert row_keys(0, IDS).shape == (len(IDS), 2)
    assert len(np.unique(row_keys(0, IDS), axis=0)) == len(IDS)
    assert not (row_keys(0, IDS) == row_keys(1, IDS)).any()
    np.testing.assert_array_equal(row_keys(3, TEXT), row_keys(3, TEXT.double()))
    assert row_keys(0, []).shape == (0, 2)


def test_gaussian_rows_are_gaussian_and_uncorrelated():
    rows = gaussian_rows(row_keys(0, [str(row) for row in range(4000)]), 16)
    moments = Moments.of(rows)
    assert moments.mean.abs().max() < 0.08
    identity = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(moments.covariance, identity, atol=0.1, rtol=0)
    assert float((rows**4).mean()) == pytest.approx(3, abs=0.15)
    neighbours = torch.corrcoef(torch.stack((rows[:-1].flatten(), rows[1:].flatten())))
    assert neighbours[0, 1].abs() < 0.02


def test_c3_is_the_centroid_shift_and_noise():
    centroid = Centroid().fit(IMAGE, TEXT)
    quiet = C3(0.0).fit(IMAGE, TEXT).transform(TEXT, IDS)
    torch.testing.assert_close(quiet, centroid.transform(TEXT))
    noise = gaussian_rows(row_keys(5, IDS), WIDTH)
    expected = torch.nn.functional.normalize(centroid.moved(TEXT) + 0.3 * noise, dim=1)
    found = C3(0.3, seed=5).fit(IMAGE, TEXT).transform(TEXT, IDS)
    torch.testing.assert_close(found, expected)


def test_permuted_draws_images_evenly_and_never_looks_at_the_text():
    aligner = Permuted().fit(IMAGE[:10], TEXT)
    ids = [str(row) for row in range(5000)]
    rows = aligner.transform(torch.ones(5000, WIDTH), ids)
    assert torch.equal(rows, aligner.transform(-torch.ones(5000, WIDTH), ids))
    found, counts = rows.unique(dim=0, return_counts=True)
    wanted = torch.nn.functional.normalize(IMAGE[:10], dim=1).unique(dim=0)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert counts.min() > 400
    assert counts.max() < 600


def test_permuted_keeps_the_same_images_in_whatever_order_they_come():
    images = 40
    aligner, turned = (Permuted(images).fit(order, TEXT) for order in (IMAGE, IMAGE.flip(dims=[0])))
    kept = aligner.tensors()["images"]
    assert kept.shape == (images, WIDTH)
    assert torch.equal(kept, turned.tensors()["images"])
    assert not torch.equal(kept, Permuted(images, seed=1).fit(IMAGE, TEXT).tensors()["images"])


def test_permuted_mixes_with_other_images_as_random_labels_do():
    images, texts = clouds(8000, 600)
    substitutes = Permuted().fit(images[600:], texts).transform(texts)
    assert local_mixing(images[:600], substitutes) == pytest.approx((1, 1), abs=0.03)
    assert max(local_mixing(images[:600], texts)) < 0.7
