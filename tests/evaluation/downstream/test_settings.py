"""Settings of the downstream evaluation refuse what cannot be run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pipeline.evaluation.downstream.settings import (
    REGIMES,
    DecoderSettings,
    DownstreamSettings,
    StageSettings,
)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (StageSettings, {"epochs": 0}, "epochs must be above 0, not 0"),
        (StageSettings, {"learning_rate": -1.0}, "learning_rate must be above 0"),
        (DecoderSettings, {"config": {"hidden_size": 8}}, "no model_type"),
        (DecoderSettings, {"vocabulary": 299}, "300 or more"),
        (DownstreamSettings, {"seeds": 0}, "seeds must be at least 1"),
        (DownstreamSettings, {"captions": 0}, "captions must be at least 1"),
        (DownstreamSettings, {"visual_tokens": 0}, "visual_tokens"),
        (DownstreamSettings, {"projector_width": 0}, "projector_width"),
        (DownstreamSettings, {"batch_size": 0}, "batch_size"),
        (DownstreamSettings, {"test_images": 1}, "test_images must be at least 2"),
        (DownstreamSettings, {"real_images": 0}, "real_images is 0"),
        (
            DownstreamSettings,
            {"captions": 99, "real_images": 100},
            r"between 1 and captions \(99\)",
        ),
        (DownstreamSettings, {"methods": ()}, "methods names none"),
        (DownstreamSettings, {"regimes": ()}, "text-only"),
    ],
)
def test_what_cannot_be_run_is_refused(kind: Any, changes: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        kind(**changes)


def test_what_stands_there_is_a_small_decoder_and_every_regime():
    settings = DownstreamSettings()
    assert settings.regimes == REGIMES
    assert settings.decoder.path is None
    assert DecoderSettings(path="folder", config={}).path == "folder"  # a path needs no fields
    other = DownstreamSettings()
    other.decoder.config.update(hidden_size=1)
    assert DownstreamSettings().decoder.config["hidden_size"] == 64  # nobody changes everybody's


def test_settings_load_nothing_heavy():
    code = (
        "import sys, pipeline.evaluation.downstream.settings;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
