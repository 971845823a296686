"""AnisoAlign assembled: frame, target prior, bounded refinement, calibration (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from pipeline.align.base import Aligner, NotFittedError, check_clouds, with_prefix
from pipeline.align.objectives import Objective, prior_objective, refiner_objective
from pipeline.align.polar_statistics import PolarStatistics
from pipeline.align.prior import ScoreNetwork, noise_scales
from pipeline.align.refiner import (
    Bounds,
    Parts,
    RefinerNetwork,
    bounded_refinement,
)
from pipeline.align.settings import (
    AnisoAlignSettings,
    NoiseSettings,
    PriorSettings,
    RefinerSettings,
)
from pipeline.align.training import (
    Progress,
    Stage,
    StageState,
    TrainingState,
    Worker,
    initialised,
    train_stage,
)
from pipeline.geometry.circular import PhaseStructure
from pipeline.geometry.frame import (
    Frame,
    check_rank,
    choose_rank,
    fixed_frame,
    joint_structure_matrix,
)
from pipeline.geometry.moments import Moments
from pipeline.geometry.polar import Polar, to_polar
from pipeline.geometry.radial import RadialTransport

Part = TypeVar("Part")

_EPSILON = 1e-8  # keeps D_V finite where the text has no spread


class AnisoAlign(Aligner):
    """Anisotropic Modality Align (arXiv 2605.07825).

    `fit(image, text)` does everything on tensors. A distributed fit calls the same steps with
    merged states: `fit_frame`, `fit_polar`, `train`, `calibrate`.
    """

    method = "anisoalign"
    calibrates = True
    refines: ClassVar[bool] = True

    def __init__(
        self,
        rank: int | Literal["auto"] = "auto",
        mixing: Literal["random", "identity"] = "random",
        *,
        ridge: float = 0.0,
        noise: NoiseSettings | None = None,
        prior: PriorSettings | None = None,
        refiner: RefinerSettings | None = None,
        seed: int = 0,
    ) -> None:
        """Take the settings; see `pipeline.align.settings` for their meaning and defaults.

        Raises:
            ValueError: for a setting out of its range.
        """
        super().__init__()
        self.settings = AnisoAlignSettings(
            rank=rank,
            mixing=mixing,
            ridge=ridge,
            noise=noise or NoiseSettings(),
            prior=prior or PriorSettings(),
            refiner=refiner or RefinerSettings(),
        )
        self.seed = seed
        self.history: dict[str, list[float]] = {}
        self._frame: Frame | None = None
        self._structure: PhaseStructure | None = None
        self._transport: RadialTransport | None = None
        self._prior: ScoreNetwork | None = None
        self._refiner: RefinerNetwork | None = None

    @classmethod
    def from_settings(cls, settings: AnisoAlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with given settings."""
        return cls(
            settings.rank,
            settings.mixing,
            ridge=settings.ridge,
            noise=settings.noise,
            prior=settings.prior,
            refiner=settings.refiner,
            seed=seed,
        )

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, image: Tensor, text: Tensor, *, progress: Progress | None = None) -> Self:
        """Fit on unpaired unit rows, `image` (n, d) and `text` (k, d); returns self.

        Raises:
            ValueError: when the clouds cannot be used or the rank does not fit them.
        """
        check_clouds(image, text)
        image, text = image.to(torch.float32), text.to(torch.float32)
        self.fit_frame(Moments.of(image), Moments.of(text))
        self.fit_polar(self.image_statistics(image), self.text_statistics(text))
        self.train(image, text, progress=progress)
        return self.calibrate(self.mean_of_mapped(text))

    def fit_frame(self, image: Moments, text: Moments) -> Self:
        """Freeze the frame and the complement's scaling from merged moments; returns self.

        Raises:
            ValueError: when the rank does not fit the embeddings or the number of images.
        """
        structure = joint_structure_matrix(text.covariance, image.covariance, self.settings.ridge)
        rank = self.settings.rank
        if rank == "auto":
            rank = choose_rank(structure, image.count)
        check_rank(rank, image.dimension, image.count)
        frame = fixed_frame(structure, rank, self.settings.mixing, self.seed)
        image_deviation = frame.complement_deviation(image.covariance)
        text_deviation = frame.complement_deviation(text.covariance)
        complement_mean = frame.complement(image.mean.unsqueeze(0)).squeeze(0)
        self._frame = frame.to(torch.float32)
        self._tensors = {
            name: tensor.to(torch.float32)
            for name, tensor in {
                "image_mean": image.mean,
                "text_mean": text.mean,
                "complement_mean": complement_mean,
                "complement_scale": image_deviation / (text_deviation + _EPSILON),
            }.items()
        }
        return self.to(self._device)

    def image_statistics(self, image: Tensor) -> PolarStatistics:
        """Return the second-pass state of image embeddings (n, d) in the frozen frame."""
        return PolarStatistics.of(self.polar(image))

    def text_statistics(self, text: Tensor) -> PolarStatistics:
        """Return the second-pass state of recentred text embeddings y' (n, d)."""
        return PolarStatistics.of(self.polar(self._recentred(text)))

    def fit_polar(self, image: PolarStatistics, text: PolarStatistics) -> Self:
        """Fix anchors, couplings, graph and radial transport from merged states; returns self."""
        structure = PhaseStructure.of(image.circular, self.settings.prior.neighbours)
        transport = RadialTransport.between(text.radial, image.radial)
        self._structure = structure.to(torch.float32, self._device)
        self._transport = transport.to(torch.float32, self._device)
        return self

    def train(
        self,
        image: Tensor,
        text: Tensor,
        *,
        worker: Worker | None = None,
        state: TrainingState | None = None,
        checkpoint_every: int = 0,
        on_checkpoint: Callable[[TrainingState], None] | None = None,
        progress: Progress | None = None,
    ) -> TrainingState:
        """Train Stage I on images (n, d), then Stage II on texts (k, d); returns the end state."""
        state = dict(state or {})
        if not self.refines:
            return state
        for build, embeddings in ((self._prior_stage, image), (self._refiner_stage, text)):
            stage = build()

            def on_stage_checkpoint(reached: StageState, name: str = stage.name) -> None:
                state[name] = reached
                if on_checkpoint is not None:
                    on_checkpoint(dict(state))

            state[stage.name] = train_stage(
                stage,
                embeddings,
                worker=worker,
                state=state.get(stage.name),
                checkpoint_every=checkpoint_every,
                on_checkpoint=on_stage_checkpoint,
                progress=progress,
            )
        self.take_trained(state)
        return state

    def take_trained(self, state: TrainingState) -> Self:
        """Take the networks and loss curves of finished stages; returns self."""
        self._prior = self._new_prior()
        self._prior.load_state_dict(state["prior"].network)
        self._refiner = self._new_refiner()
        self._refiner.load_state_dict(state["refiner"].network)
        self.history = {name: list(stage.losses) for name, stage in state.items()}
        return self.to(self._device)

    def _new_prior(self) -> ScoreNetwork:
        frame, width = self.frame, self.settings.prior.width
        return initialised(lambda: ScoreNetwork(frame.blocks, width), self.seed, "prior")

    def _new_refiner(self) -> RefinerNetwork:
        frame, width = self.frame, self.settings.refiner.width
        return initialised(
            lambda: RefinerNetwork(frame.blocks, frame.dimension, width), self.seed, "refiner"
        )

    def _prior_stage(self) -> Stage:
        self._prior = self._new_prior().to(self._device)
        loss = prior_objective(self.polar, self.structure, self.settings.prior)
        return self._stage("prior", self._prior, loss, self.settings.prior)

    def _refiner_stage(self) -> Stage:
        assert self._prior is not None, "the prior is trained before the refiner"
        self._prior.requires_grad_(False)  # frozen: gradients flow through theta^ and rho^ only
        loss = refiner_objective(self, self._prior, self.structure, self.settings)
        return self._stage(
            "refiner", self._new_refiner().to(self._device), loss, self.settings.refiner
        )

    def _stage(
        self,
        name: str,
        network: nn.Module,
        loss: Objective,
        settings: PriorSettings | RefinerSettings,
    ) -> Stage:
        return Stage(
            name=name,
            network=network,
            loss=loss,
            blocks=self.frame.blocks,
            scales=noise_scales(self.settings.noise).to(self._device),
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=self.seed,
        )

    # -- transforming ----------------------------------------------------------------------------

    @property
    def frame(self) -> Frame:
        """The frozen frame."""
        return self._fitted(self._frame)

    @property
    def structure(self) -> PhaseStructure:
        """The target's circular structure."""
        return self._fitted(self._structure)

    @property
    def transport(self) -> RadialTransport:
        """The radial transport T_k of every block."""
        return self._fitted(self._transport)

    def _fitted(self, part: Part | None) -> Part:
        if part is None:
            raise NotFittedError(f"the {self.method} aligner is not fitted: call fit first")
        return part

    def polar(self, embeddings: Tensor) -> Polar:
        """Return radii and phases (n, m) of embeddings (n, d) in the frozen frame."""
        return to_polar(self.frame.coordinates(embeddings.to(self._device, torch.float32)))

    def _recentred(self, text: Tensor) -> Tensor:
        shift = self._tensor("image_mean") - self._tensor("text_mean")
        return text.to(self._device, torch.float32) + shift

    def initial_parts(self, text: Tensor) -> Parts:
        """Return the global initialization (section 4.4a) of text embeddings (n, d)."""
        recentred = self._recentred(text)
        polar = self.polar(recentred)
        mean = self._tensor("complement_mean")
        # y'_V - mu_{i,V} = y_V - mu_{t,V}, since y' = y - mu_t + mu_i.
        centred = self.frame.complement(recentred) - mean
        return Parts(
            radius=self.transport(polar.radius),
            phase=polar.phase,
            complement=mean + self._tensor("complement_scale") * centred,
        )

    def refined_parts(self, text: Tensor) -> Parts:
        """Return the bounded refinement (section 4.4b) of text embeddings (n, d)."""
        initial = self.initial_parts(text)
        if not self.refines:
            return initial
        return self.refine(initial, self._fitted(self._refiner)(initial))

    def refine(self, initial: Parts, output: Tensor) -> Parts:
        """Return parts changed by raw network output (n, 2 m + d), within the bounds."""
        settings = self.settings.refiner
        bounds = Bounds(settings.phase_bound, settings.log_radius_bound, settings.complement_bound)
        return bounded_refinement(initial, output, self.frame, bounds)

    @torch.no_grad()
    def map(self, text: Tensor) -> Tensor:
        """Return e' = Norm(Q_U c(rho^, theta^) + v^), shape (n, d) (section 4.4c)."""
        return self.refined_parts(text).rebuild(self.frame)

    # -- state -----------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> Self:
        """Move the aligner to a device; returns self."""
        super().to(device)
        if self._frame is not None:
            self._frame = self._frame.to(device=device)
        if self._structure is not None:
            self._structure = self._structure.to(torch.float32, device)
        if self._transport is not None:
            self._transport = self._transport.to(torch.float32, device)
        for network in (self._prior, self._refiner):
            if network is not None:
                network.to(device).requires_grad_(False)
        return self

    def configuration(self) -> dict[str, Any]:
        """Return settings and loss curves, stored in the artifact's config.json."""
        return {
            "method": self.method,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "history": self.history,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return everything fitted, on the CPU, under dotted names."""
        structure, transport = self.structure, self.transport
        parts: dict[str, Mapping[str, Tensor]] = {
            "frame": {"basis": self.frame.basis},
            "structure": vars_of(structure),
            "transport": vars_of(transport),
        }
        for name, network in (("prior", self._prior), ("refiner", self._refiner)):
            if network is not None:
                parts[name] = network.state_dict()
        return super().tensors() | {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, named in parts.items()
            for name, tensor in named.items()
        }

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Self:
        """Return an unfitted aligner with the settings of `configuration()`."""
        settings = dict(configuration["settings"])
        aligner = cls(
            settings["rank"],
            settings["mixing"],
            ridge=settings["ridge"],
            noise=NoiseSettings(**settings["noise"]),
            prior=PriorSettings(**settings["prior"]),
            refiner=RefinerSettings(**settings["refiner"]),
            seed=configuration["seed"],
        )
        aligner.history = {name: list(curve) for name, curve in configuration["history"].items()}
        return aligner

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over what `tensors()` returned; returns self."""
        super().restore(tensors)
        self._frame = Frame(tensors["frame.basis"])
        self._structure = PhaseStructure(**with_prefix(tensors, "structure."))
        self._transport = RadialTransport(**with_prefix(tensors, "transport."))
        prior, refiner = with_prefix(tensors, "prior."), with_prefix(tensors, "refiner.")
        if self.refines and prior and refiner:  # workers start from an artifact without networks
            self._prior = self._new_prior()
            self._prior.load_state_dict(prior)
            self._refiner = self._new_refiner()
            self._refiner.load_state_dict(refiner)
        return self.to("cpu")


def vars_of(record: PhaseStructure | RadialTransport) -> dict[str, Tensor]:
    """Return the tensor fields of a frozen record by name."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


class AnisoAlignInit(AnisoAlign):
    """The ablation without refinement: global initialization and calibration alone."""

    method = "anisoalign-init"
    refines = False
