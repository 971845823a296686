"""AnisoAlign with parts left out, and in the paper's own form."""

from __future__ import annotations

from dataclasses import replace

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.settings import AnisoAlignSettings


class AnisoAlignRadial(AnisoAlign):
    """The paper's own form: started from the radial transport T_k (section 4.4a)."""

    method = "anisoalign-radial"

    @classmethod
    def adapted(cls, settings: AnisoAlignSettings) -> AnisoAlignSettings:
        """Return the settings with the radial start."""
        return replace(settings, init="radial")


class AnisoAlignInit(AnisoAlign):
    """The ablation without refinement: global initialization and calibration alone."""

    method = "anisoalign-init"
    refines = False


class _Weighted(AnisoAlign):
    """An ablation of the refinement's losses w_II L_II + w_Phi L_Phi (section 4.4b)."""

    keeps_prior_loss = False
    keeps_phase_loss = False

    @classmethod
    def adapted(cls, settings: AnisoAlignSettings) -> AnisoAlignSettings:
        """Return the settings with the weights of the losses left out at zero."""
        weights = settings.refiner
        return replace(
            settings,
            refiner=replace(
                weights,
                prior_weight=weights.prior_weight if cls.keeps_prior_loss else 0.0,
                phase_weight=weights.phase_weight if cls.keeps_phase_loss else 0.0,
            ),
        )


class AnisoAlignRefine(_Weighted):
    """The ablation with a refiner and neither loss.

    The refiner starts at zero output and nothing moves it, so its rows are those of
    `anisoalign-init`.
    """

    method = "anisoalign-refine"


class AnisoAlignPrior(_Weighted):
    """The ablation with L_II alone."""

    method = "anisoalign-prior"
    keeps_prior_loss = True


class AnisoAlignPhase(_Weighted):
    """The ablation with L_Phi alone.

    L_Phi is smallest where no phase difference changes, which is where the refiner starts, so its
    rows too are those of `anisoalign-init`.
    """

    method = "anisoalign-phase"
    keeps_phase_loss = True
