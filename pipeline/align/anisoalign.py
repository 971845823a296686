"""AnisoAlign assembled: frame, target prior, bounded refinement, calibration (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from pipeline.align.base import Aligner, NotFittedError, check_clouds, normalise, with_prefix
from pipeline.align.frames import FrozenFrame
from pipeline.align.initialization import GlobalInitialization
from pipeline.align.objectives import Objective, prior_objective, refiner_objective
from pipeline.align.polar_statistics import PolarStatistics
from pipeline.align.prior import ScoreNetwork, noise_scales
from pipeline.align.refiner import (
    Bounds,
    Parts,
    RefinerNetwork,
    bounded_refinement,
)
from pipeline.align.settings import AnisoAlignSettings, PriorSettings, RefinerSettings
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
from pipeline.geometry.frame import Frame
from pipeline.geometry.mixing import mixing_rows
from pipeline.geometry.moments import Moments
from pipeline.geometry.polar import Polar, from_polar, to_polar
from pipeline.geometry.radial import RadialTransport

Part = TypeVar("Part")


class AnisoAlign(Aligner):
    """Anisotropic Modality Align (arXiv 2605.07825).

    `fit(image, text)` does everything on tensors. A distributed fit calls the same steps with
    merged states: `fit_frame`, `fit_polar`, `train`, `calibrate`. `init` says where the refinement
    starts: the paper's radial transport, or a linear transport of U (`pipeline.align.transports`),
    which is read in polar coordinates all the same.
    """

    method = "anisoalign"
    calibrates = True
    refines: ClassVar[bool] = True

    def __init__(
        self, rank: int | Literal["auto"] = "auto", *, seed: int = 0, **settings: Any
    ) -> None:
        """Take the rank and other settings by their names in `AnisoAlignSettings`.

        Raises:
            ValueError: for a setting out of its range.
            TypeError: for a setting that does not exist.
        """
        super().__init__()
        self.settings = self.adapted(AnisoAlignSettings(rank=rank, **settings))
        self.seed = seed
        self.history: dict[str, list[float]] = {}
        self._frame: Frame | None = None
        self._structure: PhaseStructure | None = None
        self._radial: RadialTransport | None = None
        self._prior: ScoreNetwork | None = None
        self._refiner: RefinerNetwork | None = None
        self._initialization: GlobalInitialization | None = None
        self._moves_complement = True

    @classmethod
    def adapted(cls, settings: AnisoAlignSettings) -> AnisoAlignSettings:
        """Return the settings as the method has them; ablations change some."""
        return settings

    @classmethod
    def from_settings(cls, settings: AnisoAlignSettings, seed: int) -> Self:
        """Return an unfitted aligner with given settings."""
        names = (field.name for field in fields(AnisoAlignSettings))
        return cls(seed=seed, **{name: getattr(settings, name) for name in names})

    def fit(self, image: Tensor, text: Tensor, *, progress: Progress | None = None) -> Self:
        """Fit on unpaired unit rows, `image` (n, d) and `text` (k, d); returns self.

        Raises:
            ValueError: when the clouds cannot be used or the rank does not fit them.
        """
        check_clouds(image, text)
        image, text = image.to(torch.float32), text.to(torch.float32)
        self.fit_frame(Moments.of(image), Moments.of(text), image)
        self.fit_polar(
            self.image_statistics(image),
            self.text_statistics(text) if self.measures_text else None,
        )
        self.train(image, text, progress=progress)
        return self.calibrate(self.mean_of_mapped(text))

    def fit_frame(self, image: Moments, text: Moments, images: Tensor | None = None) -> Self:
        """Freeze the frame, the map of U and the complement's scaling from merged moments.

        `images` (n, d) are needed where a mixing is learned; returns self.

        Raises:
            ValueError: when the rank does not fit the embeddings or the number of images.
        """
        settings = self.settings
        frozen = FrozenFrame.of(
            image, text, settings, self.seed, mixing=settings.mixing, images=images
        )
        frame = frozen.frame
        # The paper's start scales the complement the whole way.
        displacement = 1.0 if settings.init == "radial" else settings.displacement
        self._frame = frame.to(torch.float32)
        self._tensors = {
            name: tensor.to(torch.float32).contiguous()
            for name, tensor in {
                "image_mean": image.mean,
                "text_mean": text.mean,
                "transport": frozen.transport(settings.init, settings),
                "complement_mean": frame.complement(image.mean.unsqueeze(0)).squeeze(0),
                "complement_scale": frozen.complement_scale(displacement),
            }.items()
        }
        return self.to(self._device)

    @property
    def images_wanted(self) -> int:
        """Number of image rows that a mixing is learned from."""
        return mixing_rows(self.settings.mixing)

    @property
    def measures_text(self) -> bool:
        """Whether `fit_polar` needs the text's statistics: for the radial transport alone."""
        return self.settings.init == "radial"

    def image_statistics(self, image: Tensor) -> PolarStatistics:
        """Return the second-pass state of image embeddings (n, d) in the frozen frame."""
        return PolarStatistics.of(self._coordinates(image))

    def text_statistics(self, text: Tensor) -> PolarStatistics:
        """Return the second-pass state of recentred text embeddings y' (n, d)."""
        return PolarStatistics.of(self._coordinates(self._recentred(text)))

    def fit_polar(self, image: PolarStatistics, text: PolarStatistics | None = None) -> Self:
        """Fix anchors, couplings, graph, bounds and radial transport from merged states.

        The text's state is needed where `measures_text`; returns self.
        """
        structure = PhaseStructure.of(image.circular, self.settings.prior.neighbours)
        self._structure = structure.to(torch.float32, self._device)
        bounds = Bounds.of(self.settings.refiner, image).to(self._device)
        self._tensors |= {"phase_bound": bounds.phase, "log_radius_bound": bounds.log_radius}
        if self.measures_text:
            assert text is not None, "the radial transport needs the text's radii"
            transport = RadialTransport.between(text.radial, image.radial)
            self._radial = transport.to(torch.float32, self._device)
        self._initialization = None
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
        blocks, settings = self.frame.blocks, self.settings.prior
        return initialised(
            lambda: ScoreNetwork(blocks, settings.width, settings.harmonics), self.seed, "prior"
        )

    def _new_refiner(self) -> RefinerNetwork:
        frame, settings = self.frame, self.settings.refiner
        return initialised(
            lambda: RefinerNetwork(
                frame.blocks, frame.dimension, settings.width, settings.harmonics
            ),
            self.seed,
            "refiner",
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

    @property
    def frame(self) -> Frame:
        """The frozen frame."""
        return self._fitted(self._frame)

    @property
    def structure(self) -> PhaseStructure:
        """The target's circular structure."""
        return self._fitted(self._structure)

    @property
    def radial(self) -> RadialTransport:
        """The radial transport T_k of every block, where the start is radial."""
        return self._fitted(self._radial)

    def _fitted(self, part: Part | None) -> Part:
        if part is None:
            raise NotFittedError(f"the {self.method} aligner is not fitted: call fit first")
        return part

    def polar(self, embeddings: Tensor) -> Polar:
        """Return radii and phases (n, m) of embeddings (n, d) in the frozen frame."""
        return to_polar(self._coordinates(embeddings))

    def _coordinates(self, embeddings: Tensor) -> Tensor:
        return self.frame.coordinates(embeddings.to(self._device, torch.float32))

    def _recentred(self, text: Tensor) -> Tensor:
        shift = self._tensor("image_mean") - self._tensor("text_mean")
        return text.to(self._device, torch.float32) + shift

    def initial_parts(self, text: Tensor) -> Parts:
        """Return the global initialization (section 4.4a) of text embeddings (n, d)."""
        if self._initialization is None:
            radial = self.radial if self.settings.init == "radial" else None
            self._initialization = GlobalInitialization.of(self.frame, self._tensors, radial)
        return self._initialization(text.to(self._device, torch.float32))

    def refined_parts(self, text: Tensor) -> Parts:
        """Return the bounded refinement (section 4.4b) of text embeddings (n, d)."""
        initial = self.initial_parts(text)
        if not self.refines:
            return initial
        refiner = self._fitted(self._refiner)
        return self.refine(initial, refiner(initial, complement=self._moves_complement))

    def refine(self, initial: Parts, output: Tensor) -> Parts:
        """Return parts changed by raw network output (n, 2 m + d) or (n, 2 m), within bounds."""
        bounds = Bounds(
            self._tensor("phase_bound"),
            self._tensor("log_radius_bound"),
            self.settings.refiner.complement_bound,
        )
        return bounded_refinement(initial, output, self.frame, bounds)

    @torch.no_grad()
    def moved(self, text: Tensor) -> Tensor:
        """Return Q_U c(rho^, theta^) + v^, shape (n, d), of text embeddings (n, d)."""
        parts = self.refined_parts(text)
        inside = from_polar(parts.radius, parts.phase)
        return parts.complement.addmm_(inside, self.frame.basis.T)

    def map(self, text: Tensor) -> Tensor:
        """Return e' = Norm(Q_U c(rho^, theta^) + v^), shape (n, d) (section 4.4c)."""
        return normalise(self.moved(text))

    def to(self, device: torch.device | str) -> Self:
        """Move the aligner to a device; returns self."""
        super().to(device)
        self._initialization = None
        if self._frame is not None:
            self._frame = self._frame.to(device=device)
        if self._structure is not None:
            self._structure = self._structure.to(torch.float32, device)
        if self._radial is not None:
            self._radial = self._radial.to(torch.float32, device)
        for network in (self._prior, self._refiner):
            if network is not None:
                network.to(device).requires_grad_(False)
        # Neither loss looks at the complement: what training leaves at zero need not be computed.
        self._moves_complement = self._refiner is not None and self._refiner.moves_complement
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
        parts: dict[str, Mapping[str, Tensor]] = {
            "frame": {"basis": self.frame.basis},
            "structure": vars_of(self.structure),
        }
        if self._radial is not None:
            parts["radial"] = vars_of(self._radial)
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
        settings = AnisoAlignSettings.from_mapping(configuration["settings"])
        aligner = cls.from_settings(settings, configuration["seed"])
        aligner.history = {name: list(curve) for name, curve in configuration["history"].items()}
        return aligner

    def restore(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over what `tensors()` returned; returns self."""
        super().restore(tensors)
        self._frame = Frame(tensors["frame.basis"])
        self._structure = PhaseStructure(**with_prefix(tensors, "structure."))
        radial = with_prefix(tensors, "radial.")
        self._radial = RadialTransport(**radial) if radial else None
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
