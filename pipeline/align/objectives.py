"""What the two stages minimise: L_I, and L_II with L_Phi, on draws of embeddings (section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.align.prior import score_matching_loss
from pipeline.align.refiner import Parts, phase_consistency_loss
from pipeline.align.settings import AnisoAlignSettings, PriorSettings
from pipeline.align.training import Draws
from pipeline.geometry.circular import PhaseStructure
from pipeline.geometry.polar import Polar

Objective = Callable[[nn.Module, Draws], Tensor]
"""A scalar loss of a network on draws."""


class Refinement(Protocol):
    """Where the refiner starts from, and how its raw output is applied."""

    def initial_parts(self, text: Tensor) -> Parts:
        """Return the global initialization of text embeddings (n, d)."""
        ...

    def refine(self, initial: Parts, output: Tensor) -> Parts:
        """Return the parts changed by raw network output (n, 2 m + d)."""
        ...


def prior_objective(
    polar: Callable[[Tensor], Polar], structure: PhaseStructure, settings: PriorSettings
) -> Objective:
    """Return L_I of the score network on image embeddings, `polar` taking them to the frame."""

    def loss(network: nn.Module, draws: Draws) -> Tensor:
        parts = polar(draws.embeddings)
        return score_matching_loss(
            network,
            structure,
            settings.drift_step,
            parts.phase,
            torch.log(parts.radius),
            draws.scale,
            draws.noise,
        )

    return loss


def refiner_objective(
    refinement: Refinement,
    prior: nn.Module,
    structure: PhaseStructure,
    settings: AnisoAlignSettings,
) -> Objective:
    """Return w_II L_II + w_Phi L_Phi of the refiner network on text embeddings, prior frozen."""
    weights, drift_step = settings.refiner, settings.prior.drift_step

    def loss(network: nn.Module, draws: Draws) -> Tensor:
        initial = refinement.initial_parts(draws.embeddings)
        refined = refinement.refine(initial, network(initial))
        total = weights.phase_weight * phase_consistency_loss(initial, refined, structure)
        if weights.prior_weight:
            total = total + weights.prior_weight * score_matching_loss(
                prior,
                structure,
                drift_step,
                refined.phase,
                torch.log(refined.radius),
                draws.scale,
                draws.noise,
            )
        return total

    return loss
