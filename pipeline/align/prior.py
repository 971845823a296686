"""Stage I: the periodic phase prior of the target (section 4.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.align.settings import NoiseSettings
from pipeline.geometry.circular import PhaseStructure
from pipeline.geometry.polar import wrap

_WINDINGS = 3  # terms each way of the wrapped Gaussian; enough to sigma of about 1


def noise_scales(settings: NoiseSettings) -> Tensor:
    """Return the geometric ladder sigma_1 .. sigma_T in radians, shape (levels,)."""
    return torch.logspace(
        math.log10(settings.smallest), math.log10(settings.largest), settings.levels
    )


def _unwrapped_differences(phase: Tensor, centre: Tensor) -> Tensor:
    windings = torch.arange(-_WINDINGS, _WINDINGS + 1, dtype=phase.dtype, device=phase.device)
    return wrap(phase - centre).unsqueeze(-1) + 2 * math.pi * windings


def wrapped_gaussian_log_density(phase: Tensor, centre: Tensor, deviation: Tensor) -> Tensor:
    """Return log q(phi | mu, std) of each angle, a Gaussian summed over winding numbers.

    `phase` and `centre` (n, m) in radians, `deviation` (n, 1) in radians; the result is (n, m).
    """
    scale = deviation.unsqueeze(-1)
    exponents = -0.5 * (_unwrapped_differences(phase, centre) / scale) ** 2
    return torch.logsumexp(exponents, dim=-1) - torch.log(deviation) - 0.5 * math.log(2 * math.pi)


def wrapped_gaussian_score(phase: Tensor, centre: Tensor, deviation: Tensor) -> Tensor:
    """Return d/dphi log q(phi | mu, std), shape (n, m), by a stable softmax over windings."""
    scale = deviation.unsqueeze(-1)
    differences = _unwrapped_differences(phase, centre)
    weights = torch.softmax(-0.5 * (differences / scale) ** 2, dim=-1)
    return -(weights * differences).sum(dim=-1) / deviation**2


def phase_features(phase: Tensor, harmonics: int) -> Tensor:
    """Return sin and cos of the first multiples of phases (n, m), shape (n, 2 harmonics m)."""
    multiples = [order * phase for order in range(1, harmonics + 1)]
    return torch.cat([turn(angle) for angle in multiples for turn in (torch.sin, torch.cos)], -1)


class ScoreNetwork(nn.Module):
    """The score s(phi~, t, log rho), shape (n, m); 2 pi-periodic by construction.

    Phases enter through sine and cosine of whole multiples only. The network predicts the noise;
    the score is its negative divided by the standard deviation sqrt(2) sigma_t.
    """

    def __init__(self, blocks: int, width: int, harmonics: int = 1) -> None:
        super().__init__()
        self.harmonics = harmonics
        self.entry = nn.Linear((2 * harmonics + 1) * blocks + 2, width)
        self.hidden = nn.Linear(width, width)
        self.second_hidden = nn.Linear(width, width)
        self.exit = nn.Linear(width, blocks)

    def forward(self, phase: Tensor, scale: Tensor, log_radius: Tensor) -> Tensor:
        """Return the score of phases (n, m) at scale sigma_t (n, 1), given log radii (n, m)."""
        log_scale = torch.log(scale)
        features = torch.cat(
            (phase_features(phase, self.harmonics), log_radius, log_scale, log_scale**2), dim=-1
        )
        hidden = nn.functional.silu(self.entry(features))
        hidden = hidden + nn.functional.silu(self.hidden(hidden))
        hidden = hidden + nn.functional.silu(self.second_hidden(hidden))
        noise: Tensor = self.exit(hidden)
        return -noise / (math.sqrt(2.0) * scale)


def score_matching_loss(
    score: nn.Module,
    structure: PhaseStructure,
    drift_step: float,
    phase: Tensor,
    log_radius: Tensor,
    scale: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the denoising loss L_I of the prior, also used as L_II of the refiner (a scalar).

    mu = wrap(phi - tau grad Psi(phi)), phi~ = wrap(mu + sqrt(2) sigma e), and the mean over samples
    of lambda_t ||s(phi~, t, log rho) - grad log q(phi~ | mu, sigma)||^2 with lambda_t = 2 sigma^2.

    `phase`, `log_radius` and the standard normal `noise` are (n, m), `scale` sigma_t is (n, 1).
    """
    centre = wrap(phase - drift_step * structure.drift(phase))
    deviation = math.sqrt(2.0) * scale
    perturbed = wrap(centre + deviation * noise)
    target = wrapped_gaussian_score(perturbed, centre, deviation)
    error = score(perturbed, scale, log_radius) - target
    return (deviation * error).square().sum(dim=-1).mean()
