"""The diagnostic transformations on anisotropic pairs with a gap: what each keeps and mixes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pipeline.align import create_aligner
from pipeline.align.settings import AlignSettings, OracleSettings
from pipeline.evaluation.pairs import Pairs
from pipeline.geometry.alignment_metrics import alignment_metrics
from pipeline.geometry.moments import Moments

WIDTH, ROWS = 24, 600


@pytest.fixture(scope="module")
def parts() -> tuple[Pairs, Pairs]:
    """Return pairs to fit on and pairs held out.

    Image and text share what they show; each adds its own, along few directions, and a mean.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, WIDTH, generator=generator)

    shared = draw(2 * ROWS) * torch.linspace(1.0, 0.3, WIDTH)
    own = torch.linspace(-2.5, 0.5, WIDTH).exp()
    centre = torch.nn.functional.normalize(draw(2), dim=1) * 3
    image = shared + draw(2 * ROWS) * own.flip(0) + centre[0]
    text = 0.8 * shared + draw(2 * ROWS) * own * 0.5 + centre[1]
    image, text = (torch.nn.functional.normalize(rows, dim=1) for rows in (image, text))
    return Pairs(image[:ROWS], text[:ROWS]), Pairs(image[ROWS:], text[ROWS:])


def substitutes(parts: tuple[Pairs, Pairs], method: str, **settings: object) -> torch.Tensor:
    fitting, held_out = parts
    aligner = create_aligner(method, AlignSettings(**settings)).fit(fitting.image, fitting.text)
    if method == "oracle":
        return aligner.transform_pairs(held_out.image, held_out.text)
    return aligner.transform(held_out.text)


def measured(parts: tuple[Pairs, Pairs], method: str, **settings: object) -> dict[str, float]:
    held_out = parts[1]
    return alignment_metrics(held_out.image, held_out.text, substitutes(parts, method, **settings))


def covariance_distance(parts: tuple[Pairs, Pairs], rows: torch.Tensor) -> float:
    """Return ||Sigma_x - Sigma_z||_F / ||Sigma_x||_F."""
    image = Moments.of(parts[1].image).covariance
    return float((image - Moments.of(rows).covariance).norm() / image.norm())


def test_identity_keeps_the_source_and_mixes_nothing(parts: tuple[Pairs, Pairs]):
    metrics = measured(parts, "identity")
    assert metrics["delta_mu"] > 0.5
    assert metrics["m_z"] < 0.1
    assert metrics["m_x"] < 0.1
    for kept in ("phi", "psi", "omega"):
        assert metrics[kept] == pytest.approx(1, abs=1e-5)


def test_permuted_images_mix_fully_and_keep_nothing(parts: tuple[Pairs, Pairs]):
    metrics = measured(parts, "permuted")
    assert metrics["delta_mu"] < 0.1
    assert metrics["m_z"] == pytest.approx(1, abs=0.05)
    assert metrics["m_x"] == pytest.approx(1, abs=0.05)
    assert abs(metrics["psi"]) < 0.05
    assert metrics["omega"] < 2.5 * 20 / (ROWS - 1)  # 20 neighbours by chance
    assert metrics["retrieval_r10"] < 4 * 10 / ROWS


@pytest.mark.parametrize("kind", ["bures", "whitening"])
def test_moment_matches_the_covariance_and_loses_meaning(parts: tuple[Pairs, Pairs], kind: str):
    from pipeline.align.settings import MomentSettings

    settings = {"moment": MomentSettings(map=kind)}
    shift, match = measured(parts, "centroid"), measured(parts, "moment", **settings)
    before = covariance_distance(parts, substitutes(parts, "centroid"))
    assert covariance_distance(parts, substitutes(parts, "moment", **settings)) < 0.5 * before
    assert match["m_z"] > shift["m_z"]
    for kept in ("psi", "omega"):
        assert match[kept] < shift[kept] - 0.05


def test_the_oracle_closes_the_gap_as_its_share_grows(parts: tuple[Pairs, Pairs]):
    found = [
        measured(parts, "oracle", oracle=OracleSettings(share=share, directions=8))
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for metric in ("paired_cosine", "retrieval_r1"):
        values = [one[metric] for one in found]
        assert values == sorted(values)
        assert values[-1] > values[0] + 0.1
    for mixing in ("m_z", "m_x"):
        values = [one[mixing] for one in found]
        assert all(after > before - 0.005 for before, after in pairwise(values))
        assert values[-1] > values[0] + 0.05
    for kept in ("psi", "omega"):
        values = [one[kept] for one in found]
        assert values == sorted(values, reverse=True)
    whole = measured(parts, "oracle", oracle=OracleSettings(share=1.0))
    assert whole["paired_cosine"] == pytest.approx(1, abs=1e-5)
    assert whole["retrieval_r1"] == 1
    assert whole["m_x"] > found[0]["m_x"]


def test_noise_enters_the_images_less_than_the_shift_alone(parts: tuple[Pairs, Pairs]):
    shift, noisy = measured(parts, "centroid"), measured(parts, "c3")
    for kept in ("phi", "psi", "omega"):
        assert noisy[kept] < shift[kept]
    assert noisy["retrieval_r10"] < shift["retrieval_r10"]
