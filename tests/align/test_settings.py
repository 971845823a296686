import subprocess
import sys
from typing import get_args

import pytest

from pipeline.align.settings import (
    METHODS,
    PAIRED_METHODS,
    AlignSettings,
    AnisoAlignSettings,
    C3Settings,
    MethodName,
    MomentSettings,
    NoiseSettings,
    OracleSettings,
    PermutedSettings,
    PriorSettings,
    RefinerSettings,
)


def test_defaults_are_valid():
    settings = AlignSettings()
    assert settings.method in METHODS
    assert settings.rank == "auto"
    assert (settings.init, settings.displacement) == ("gromov", 0.4)
    assert settings.shrinkage == "ledoit-wolf"
    assert (settings.refiner.phase_bound, settings.refiner.log_radius_bound) == (0.05, 0.05)


def test_a_run_may_have_every_method_that_needs_no_pairs():
    assert [m for m in METHODS if m not in PAIRED_METHODS] == list(get_args(MethodName))


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (NoiseSettings, {"smallest": 0.0}, "smallest"),
        (NoiseSettings, {"smallest": 0.6, "largest": 0.5}, "smallest"),
        (NoiseSettings, {"largest": 1.6}, r"noise\.largest is 1\.6"),
        (NoiseSettings, {"levels": 0}, "levels"),
        (PriorSettings, {"neighbours": 0}, "neighbours"),
        (PriorSettings, {"width": 0}, r"prior\.width"),
        (PriorSettings, {"harmonics": 0}, r"prior\.harmonics"),
        (PriorSettings, {"drift_step": -0.1}, r"prior\.drift_step"),
        (PriorSettings, {"steps": -1}, r"prior\.steps"),
        (PriorSettings, {"batch_size": 0}, r"prior\.batch_size"),
        (PriorSettings, {"learning_rate": 0.0}, r"prior\.learning_rate"),
        (RefinerSettings, {"phase_bound": -0.1}, r"refiner\.phase_bound"),
        (RefinerSettings, {"log_radius_bound": -0.1}, r"refiner\.log_radius_bound"),
        (RefinerSettings, {"complement_bound": -0.1}, r"refiner\.complement_bound"),
        (RefinerSettings, {"bounds": "loose"}, r"refiner\.bounds must be fixed or adaptive"),
        (RefinerSettings, {"prior_weight": -1.0}, r"refiner\.prior_weight"),
        (RefinerSettings, {"phase_weight": -1.0}, r"refiner\.phase_weight"),
        (RefinerSettings, {"harmonics": 0}, r"refiner\.harmonics"),
        (RefinerSettings, {"steps": -1}, r"refiner\.steps"),
        (AnisoAlignSettings, {"rank": 3}, "even number"),
        (AnisoAlignSettings, {"rank": 0}, "even number"),
        (AnisoAlignSettings, {"ridge": -1.0}, "ridge"),
        (AnisoAlignSettings, {"ridge": float("inf")}, "ridge must be finite"),
        (AnisoAlignSettings, {"displacement": float("nan")}, "displacement"),
        (AnisoAlignSettings, {"isometry_weight": -1.0}, "isometry_weight must be finite"),
        (AnisoAlignSettings, {"isometry_weight": float("inf")}, "isometry_weight must be finite"),
        (AnisoAlignSettings, {"isometry_weight": float("nan")}, "isometry_weight must be finite"),
        (AlignSettings, {"rank": 3}, "even number"),
        (AlignSettings, {"displacement": -0.1}, "displacement"),
        (AlignSettings, {"displacement": 1.1}, "displacement"),
        (MomentSettings, {"map": "magic"}, r"moment\.map"),
        (PermutedSettings, {"images": 0}, r"permuted\.images"),
        (OracleSettings, {"share": -0.1}, r"oracle\.share"),
        (OracleSettings, {"share": 1.1}, r"oracle\.share"),
        (OracleSettings, {"directions": 0}, r"oracle\.directions"),
        (C3Settings, {"deviation": -0.1}, r"c3\.deviation"),
        (C3Settings, {"deviation": float("nan")}, r"c3\.deviation"),
    ],
)
def test_settings_out_of_range_are_named(settings, change, message):
    with pytest.raises(ValueError, match=message):
        settings(**change)


def test_settings_load_without_torch():
    code = "import sys, pipeline.align.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
