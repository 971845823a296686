"""All that a run needs to know, of all sections."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import model_validator

from pipeline.align.settings import AlignSettings
from pipeline.config.section import Section
from pipeline.config.sections import (
    AlignerSection,
    DemoSection,
    EncoderSection,
    LeaseSection,
    NightlySection,
    OutputSection,
    RaySection,
    RejectsSection,
    TrainSection,
    UnitsSection,
)
from pipeline.config.sources import ImageSource, TextSource
from pipeline.encoders.settings import check_device
from pipeline.evaluation.downstream.settings import DownstreamSettings
from pipeline.export.conversations import ConversationSettings
from pipeline.names import Names


class RunConfig(Section):
    """Everything a run needs to know."""

    seed: int = 0
    """Seed of every random draw."""
    names: Names = Names()
    text: TextSource = TextSource()
    image: ImageSource = ImageSource()
    encoder: EncoderSection = EncoderSection()
    align: AlignSettings = AlignSettings()
    aligner: AlignerSection = AlignerSection()
    calibration: Literal["fit", "exact"] = "fit"
    """mu-hat over the fitting texts (one pass), or over the very corpus that is corrected."""
    output: OutputSection = OutputSection()
    units: UnitsSection = UnitsSection()
    rejects: RejectsSection = RejectsSection()
    train: TrainSection = TrainSection()
    ray: RaySection = RaySection()
    lease: LeaseSection = LeaseSection()
    nightly: NightlySection = NightlySection()
    conversations: ConversationSettings = ConversationSettings()
    downstream: DownstreamSettings = DownstreamSettings()
    demo: DemoSection = DemoSection()

    @model_validator(mode="after")
    def _check_device_and_gpus(self) -> RunConfig:
        check_device(self.encoder.device, self.ray.gpus_per_actor)
        return self

    def to_mapping(self) -> dict[str, Any]:
        """Return the configuration as plain values, defaults included."""
        return self.model_dump(mode="json")

    def fingerprint(self, *sections: str) -> str:
        """Return a hex digest of the named sections (all when none is named)."""
        values = self.to_mapping()
        chosen = {name: values[name] for name in (sections or values)}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
