"""Stage II: the instance-conditioned bounded refinement of the source (section 4.4b)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.align.polar_statistics import PolarStatistics
from pipeline.align.prior import phase_features
from pipeline.align.settings import RefinerSettings
from pipeline.geometry.circular import PhaseStructure
from pipeline.geometry.frame import Frame
from pipeline.geometry.polar import EPSILON, wrap

_GAUSSIAN_INTERQUARTILE_RANGE = 1.349


class Parts(NamedTuple):
    """An embedding taken apart: radii (n, m), phases (n, m), complement v (n, d)."""

    radius: Tensor
    phase: Tensor
    complement: Tensor


@dataclass(frozen=True)
class Bounds:
    """Largest changes: phase (m,) in radians, log radius (m,), complement per coordinate."""

    phase: Tensor
    log_radius: Tensor
    complement: float

    @classmethod
    def of(cls, settings: RefinerSettings, image: PolarStatistics) -> Self:
        """Return the bounds of each block, from the settings and the target's own spread.

        Adaptive bounds are in units of it: the circular standard deviation sqrt(-2 ln R_k) of the
        phase, R_k = |E e^{i theta_k}|, and the interquartile range of log rho_k over that of a
        standard Gaussian.
        """
        if settings.bounds == "fixed":
            one = torch.ones(image.circular.energy.shape[0], dtype=torch.float64)
            return cls(
                one * settings.phase_bound,
                one * settings.log_radius_bound,
                settings.complement_bound,
            )
        length = (image.circular.phasor / image.circular.count).abs()
        deviation = torch.sqrt(-2 * torch.log(length.clamp(EPSILON, 1)))
        quartiles = torch.log(image.radial.quantiles((0.25, 0.75)))
        spread = (quartiles[:, 1] - quartiles[:, 0]) / _GAUSSIAN_INTERQUARTILE_RANGE
        return cls(
            # Half a turn reaches every phase there is.
            (settings.phase_bound * deviation).clamp(max=math.pi),
            settings.log_radius_bound * spread,
            settings.complement_bound,
        )

    def to(self, device: torch.device | str) -> Bounds:
        """Return the bounds in float32 on a device."""
        return Bounds(
            self.phase.to(device, torch.float32),
            self.log_radius.to(device, torch.float32),
            self.complement,
        )


class RefinerNetwork(nn.Module):
    """The network g: (dtheta, drho, dv) from [sin theta0; cos theta0; log rho0; v0].

    More `harmonics` add sin and cos of whole multiples of theta0. The last layer starts at zero,
    so that training starts at the global initialization exactly.
    """

    def __init__(self, blocks: int, dimension: int, width: int, harmonics: int = 1) -> None:
        super().__init__()
        self.blocks = blocks
        self.harmonics = harmonics
        self.entry = nn.Linear((2 * harmonics + 1) * blocks + dimension, width)
        self.hidden = nn.Linear(width, width)
        self.exit = nn.Linear(width, 2 * blocks + dimension)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    @property
    def moves_complement(self) -> bool:
        """Whether any output dv is other than zero, whatever the input."""
        still = 2 * self.blocks
        return bool(self.exit.weight[still:].any() or self.exit.bias[still:].any())

    def forward(self, initial: Parts, complement: bool = True) -> Tensor:
        """Return the raw outputs of initial parts, (n, 2 m + d), or (n, 2 m) without dv."""
        polar = torch.cat(
            (phase_features(initial.phase, self.harmonics), torch.log(initial.radius)), dim=-1
        )
        # Two products in place of one of all features, which would have to be put together.
        known, rest = self.entry.weight.split((polar.shape[-1], initial.complement.shape[-1]), 1)
        first = torch.addmm(self.entry.bias, polar, known.T)
        hidden = nn.functional.silu(first.addmm_(initial.complement, rest.T))
        hidden = hidden + nn.functional.silu(self.hidden(hidden))
        if complement:
            output: Tensor = self.exit(hidden)
            return output
        still = 2 * self.blocks
        return torch.addmm(self.exit.bias[:still], hidden, self.exit.weight[:still].T)


def bounded_refinement(initial: Parts, output: Tensor, frame: Frame, bounds: Bounds) -> Parts:
    """Apply raw network output (n, 2 m + d) within the bounds, whatever its values (section 4.4b).

    theta^ = wrap(theta0 + a_theta tanh dtheta), rho^ = rho0 exp(a_rho tanh drho) and
    v^ = v0 + a_v tanh dv, with dv taken to V first; dv is zero where the output is (n, 2 m).
    """
    blocks = initial.phase.shape[-1]
    phase_change, radius_change = output[..., :blocks], output[..., blocks : 2 * blocks]
    complement_change = output[..., 2 * blocks :]
    complement = initial.complement
    if complement_change.shape[-1]:
        inside = frame.complement(complement_change)
        complement = complement + bounds.complement * torch.tanh(inside)
    return Parts(
        radius=initial.radius * torch.exp(bounds.log_radius * torch.tanh(radius_change)),
        phase=wrap(initial.phase + bounds.phase * torch.tanh(phase_change)),
        complement=complement,
    )


def phase_consistency_loss(initial: Parts, refined: Parts, structure: PhaseStructure) -> Tensor:
    """Return L_Phi (a scalar): phase differences along the graph must stay as they were.

    (1/|E|) sum over edges of w_kl (1 - cos((theta^_k - theta^_l) - (theta0_k - theta0_l))) with
    w_kl = rho0_k rho0_l / (sum over edges of rho0_u rho0_v + eps), meaned over samples.
    """
    first, second = structure.edges[:, 0], structure.edges[:, 1]
    change = refined.phase - initial.phase
    radius = initial.radius.detach()
    product = radius[:, first] * radius[:, second]
    weight = product / (product.sum(dim=-1, keepdim=True) + EPSILON)
    twist = 1 - torch.cos(change[:, first] - change[:, second])
    # A single block has no edge, and nothing to keep.
    return (weight * twist).sum(dim=-1).mean() / max(1, structure.edges.shape[0])
