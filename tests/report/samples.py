"""Made-up but realistic measurements: d = 64, eight methods."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

DIMENSION = 64

_KEYS = ("delta_mu", "m_z", "m_x", "a_r", "phi", "psi", "omega")
_ROWS = {
    "identity": (0.851, 0.0, 0.0, 27.1, 1.0, 1.0, 1.0, 0.416),
    "permuted": (0.021, 0.981, 0.975, 9.4, 0.142, 0.004, 0.041, 0.001),
    "centroid": (0.076, 0.756, 0.586, 18.3, 0.639, 0.956, 0.901, 0.415),
    "c3": (0.211, 0.164, 0.0, 15.1, 0.477, 0.727, 0.584, 0.331),
    "realign": (0.076, 0.752, 0.600, 18.3, 0.636, 0.956, 0.903, 0.416),
    "bures-block": (0.078, 0.813, 0.780, 14.1, 0.615, 0.877, 0.809, 0.404),
    "bures-subspace": (0.079, 0.974, 0.923, 12.2, 0.569, 0.689, 0.644, 0.376),
    "anisoalign": (0.080, 0.887, 0.693, 13.9, 0.621, 0.934, 0.847, 0.412),
}


def sample_metrics(*, seed: int = 0, intervals: bool = True) -> dict[str, Any]:
    """Return metrics as metrics.json holds them."""
    generator = np.random.default_rng(seed)
    methods = {}
    for name, row in _ROWS.items():
        values = dict(zip(_KEYS, row[:-1], strict=True))
        retrieval = row[-1]
        values |= {
            "retrieval_r1": retrieval,
            "retrieval_r5": min(1.0, retrieval * 1.71),
            "retrieval_r10": min(1.0, retrieval * 2.03),
            "paired_cosine": 0.3 + retrieval / 3,
        }
        # Digits beyond the third, which the page must not lose.
        methods[name] = {
            key: float(value * (1 - 0.003 * generator.random())) for key, value in values.items()
        }
    metrics: dict[str, Any] = {
        "methods": methods,
        "gap": {
            "c_lambda": 0.9412345678901234,
            "g_mu": 0.851,
            "g_sigma": 0.466,
            "pair_distance": 1.1255,
            "residual_norm": 0.7721,
            "residual_ratio": 0.686,
            "a_r": 12.31,
            "d_eff": 14.7,
            "d_eff_share": 14.7 / DIMENSION,
            "eta_u": 0.31,
            **{
                key: value
                for size in (1, 3, 6, 12)
                for key, value in (
                    (f"o_{size}", 0.2 + 0.03 * size),
                    (f"chance_{size}", size / DIMENSION),
                    (f"e_{size}", 1 - math.exp(-size / 8)),
                )
            },
        },
        "n": 250,
        "seed": seed,
        "splits": 5,
        "interval_kind": "splits",
        "resamples": 0,
    }
    if intervals:
        metrics["intervals"] = {
            name: {
                key: [0.98 * value, 1.02 * value if key == "a_r" else min(1.0, 1.02 * value)]
                for key, value in values.items()
            }
            for name, values in methods.items()
        }
    return metrics


def sample_curves(seed: int = 0) -> dict[str, Any]:
    """Return every curve that curves.json may hold."""
    generator = np.random.default_rng(seed)
    numbers = np.arange(1, DIMENSION + 1)
    edges = np.linspace(-math.pi, math.pi, 25)
    centres = (edges[1:] + edges[:-1]) / 2

    def spectrum(decay: float) -> np.ndarray:
        values = numbers**-decay * np.exp(0.05 * generator.standard_normal(DIMENSION))
        return np.sort(values / values.sum())[::-1]

    def rose(anchor: float, strength: float) -> list[float]:
        density = np.exp(strength * np.cos(centres - anchor))
        return (density / density.sum() / (edges[1] - edges[0])).tolist()

    def places(along_the_gap: float) -> list[list[float]]:
        return generator.normal((along_the_gap, 0, 0), 0.1, (60, 3)).tolist()

    def losses(start: float, end: float, steps: int) -> list[float]:
        time = np.linspace(0, 6, steps)
        noise = 1 + 0.08 * generator.standard_normal(steps)
        return ((end + (start - end) * np.exp(-time)) * noise).tolist()

    return {
        "spectra": {
            "image": (0.70 * spectrum(1.0)).tolist(),
            "text": (0.66 * spectrum(1.1)).tolist(),
        },
        "subspace_overlap": {
            "sizes": [1, 2, 4, 8, 16, 32, 64],
            "overlap": [0.18, 0.22, 0.27, 0.36, 0.48, 0.67, 1.0],
            "chance": [size / DIMENSION for size in (1, 2, 4, 8, 16, 32, 64)],
        },
        "residual_spectrum": spectrum(1.05).tolist(),
        "clouds": {
            "image": places(0.0),
            "text": places(-0.9),
            "substitutes": {name: places(0.0) for name in ("realign", "anisoalign")},
        },
        "method_spectra": {
            name: spectrum(1.25 - 0.08 * position).tolist() for position, name in enumerate(_ROWS)
        },
        "training": {
            "anisoalign": {"prior": losses(1.0, 0.82, 1500), "refiner": losses(1.6, 1.1, 800)}
        },
        "phases": {
            "blocks": [0, 3, 11],
            "edges": edges.tolist(),
            "target": [rose(0.4, 1.4), rose(-2.0, 0.8), rose(2.6, 0.3)],
            "source": [rose(-1.2, 0.5), rose(1.0, 1.0), rose(0.1, 0.2)],
            "substitute": [rose(0.3, 1.1), rose(-1.8, 0.7), rose(2.2, 0.3)],
        },
        "frontier": {
            "bures-block": [
                _frontier_row(rank, displacement, 0.81 + 0.0006 * rank, 0.81 - 0.002 * rank)
                for rank in (8, 16, 32)
                for displacement in (0.25, 0.5, 0.75, 1.0)
            ],
            "bures-subspace": [
                _frontier_row(rank, displacement, 0.9 + 0.0015 * rank, 0.72 - 0.004 * rank)
                for rank in (8, 16, 32, 64)
                for displacement in (0.25, 0.5, 0.75, 1.0)
            ],
            "oracle": [
                {"alpha": alpha, "metrics": _moved(0.65 + 0.3 * alpha, 0.91 - 0.2 * alpha**2)}
                for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)
            ],
        },
        "target_size": [
            {
                "images": images,
                "method": name,
                "shrinkage": shrinkage,
                "metrics": _moved(
                    best * (1 - 8 / images**0.75 * (1 if shrinkage == "none" else 0.6)),
                    kept * (1 - 3 / images**0.75 * (1 if shrinkage == "none" else 0.4)),
                ),
            }
            for images in (50, 100, 250, 1000)
            for name, best, kept in (("bures-subspace", 0.95, 0.64), ("anisoalign", 0.78, 0.84))
            for shrinkage in ("none", "ledoit-wolf")
        ],
    }


def _frontier_row(rank: int, displacement: float, mixed: float, kept: float) -> dict[str, Any]:
    start_mixed, start_kept = 0.67, 0.905
    return {
        "rank": rank,
        "displacement": displacement,
        "metrics": _moved(
            start_mixed + (mixed - start_mixed) * displacement**0.7,
            start_kept + (kept - start_kept) * displacement**1.5,
        ),
    }


def _moved(mixed: float, kept: float) -> dict[str, float]:
    return {
        "delta_mu": 0.08,
        "m_z": min(1.0, mixed * 1.05),
        "m_x": mixed * 0.95,
        "a_r": 14.0,
        "phi": 0.62,
        "psi": min(1.0, kept + 0.06),
        "omega": kept,
        "retrieval_r1": 0.42 * kept / 0.9,
        "retrieval_r5": 0.7,
        "retrieval_r10": 0.8,
        "paired_cosine": 0.44,
    }
