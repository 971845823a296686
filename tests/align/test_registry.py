import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

import pipeline.align
from pipeline.align import create_aligner, load_aligner
from pipeline.align.settings import (
    METHODS,
    PAIRED_METHODS,
    AlignSettings,
    AnisoAlignSettings,
    C3Settings,
    MomentSettings,
    NoiseSettings,
    OracleSettings,
    PermutedSettings,
)
from pipeline.storage import read_artifact, write_artifact
from tests.align.clouds import SMALL, clouds, fitted

IMAGE, TEXT = (cloud[:50] for cloud in clouds())

CHANGED = AlignSettings(
    rank=4,
    mixing="identity",
    ridge=0.1,
    shrinkage="none",
    init="radial",
    displacement=0.3,
    isometry_weight=3.0,
    noise=NoiseSettings(smallest=0.1, largest=0.9, levels=5),
    moment=MomentSettings(map="whitening"),
    permuted=PermutedSettings(images=40),
    oracle=OracleSettings(share=0.25, directions=3),
    c3=C3Settings(deviation=0.2),
    prior=replace(SMALL.prior, harmonics=3, drift_step=0.2),
    refiner=replace(
        SMALL.refiner, bounds="adaptive", phase_bound=0.4, harmonics=2, prior_weight=2.0
    ),
)
"""Nothing at its default."""


def substitutes(aligner):
    if aligner.method in PAIRED_METHODS:
        return aligner.transform_pairs(IMAGE, TEXT)
    return aligner.transform(TEXT)


LEARNED = replace(SMALL, rank=4, mixing="learned", init="block")


@pytest.mark.parametrize("settings", [SMALL, CHANGED, LEARNED], ids=["small", "changed", "learned"])
@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_keep_every_bit(method, settings, tmp_path):
    aligner = fitted(method, settings, seed=2)
    provenance = {"encoder": "demo", "rows": 600}
    fingerprint = aligner.save(str(tmp_path / "first"), provenance)
    loaded = load_aligner(str(tmp_path / "first"))
    assert type(loaded) is type(aligner)
    assert torch.equal(substitutes(loaded), substitutes(aligner))
    assert loaded.configuration() == aligner.configuration()
    assert (loaded.calibration is None) == (aligner.calibration is None)
    assert loaded.save(str(tmp_path / "second"), provenance) == fingerprint
    assert read_artifact(str(tmp_path / "second"))[0]["provenance"] == provenance


@pytest.mark.parametrize("init", ["radial", "block", "subspace", "gromov"])
@pytest.mark.parametrize("bounds", ["fixed", "adaptive"])
def test_every_start_and_bound_is_kept(init, bounds, tmp_path):
    refiner = replace(SMALL.refiner, bounds=bounds, harmonics=3)
    prior = replace(SMALL.prior, harmonics=2)
    aligner = fitted("anisoalign", replace(SMALL, init=init, refiner=refiner, prior=prior))
    aligner.save(str(tmp_path))
    loaded = load_aligner(str(tmp_path))
    assert loaded.settings == aligner.settings
    assert torch.equal(loaded.transform(TEXT), aligner.transform(TEXT))
    kept = loaded.tensors()
    assert kept.keys() == aligner.tensors().keys()
    assert any(name.startswith("radial.") for name in kept) == (init == "radial")


def test_fingerprint_follows_the_content(tmp_path):
    first = fitted("anisoalign").save(str(tmp_path / "1"))
    assert fitted("anisoalign").save(str(tmp_path / "2")) == first
    assert fitted("anisoalign", seed=1).save(str(tmp_path / "3")) != first


def test_loaded_calibration_can_be_merged(tmp_path):
    aligner = fitted("anisoalign-init")
    aligner.save(str(tmp_path))
    loaded = load_aligner(str(tmp_path))
    more = loaded.calibration.merge(loaded.mean_of_mapped(TEXT))
    assert more.count == 650
    moved = loaded.calibrate(more).transform(TEXT)
    assert not torch.equal(moved, aligner.transform(TEXT))


@pytest.mark.parametrize("method", METHODS)
def test_create_by_name(method):
    aligner = create_aligner(method, SMALL, seed=3)
    assert aligner.method == method
    if method.startswith("anisoalign"):
        used = {one.name: getattr(SMALL, one.name) for one in fields(AnisoAlignSettings)}
        assert aligner.settings == type(aligner).adapted(AnisoAlignSettings(**used))
        assert aligner.seed == 3
        plain = create_aligner(method).settings
        assert plain == type(aligner).adapted(AnisoAlignSettings())
        assert (plain == AnisoAlignSettings()) == (method in ("anisoalign", "anisoalign-init"))


OWN = {
    "identity": set(),
    "centroid": set(),
    "moment": {"map"},
    "permuted": {"images", "seed"},
    "oracle": {"share", "directions"},
    "c3": {"deviation", "seed"},
    "unicorn": set(),
    "realign": set(),
    "bures-block": {"rank", "mixing", "ridge", "shrinkage", "displacement", "seed"},
    "bures-subspace": {"rank", "ridge", "shrinkage", "displacement", "seed"},
    "bures-gromov": {"rank", "ridge", "shrinkage", "displacement", "isometry_weight", "seed"},
}


@pytest.mark.parametrize("method", OWN)
def test_the_configuration_is_what_the_method_uses_and_no_more(method):
    plain = create_aligner(method, AlignSettings(), 0).configuration()
    changed = create_aligner(method, CHANGED, 1).configuration()
    assert set(plain) == set(changed) == {"method"} | OWN[method]
    assert {name for name in plain if plain[name] != changed[name]} == OWN[method]


def test_nothing_of_the_changed_settings_is_at_its_default():
    plain = AlignSettings()
    for one in fields(AlignSettings):
        if one.name != "method":
            assert getattr(CHANGED, one.name) != getattr(plain, one.name), one.name


def test_unknown_methods(tmp_path):
    with pytest.raises(ValueError, match="unknown method 'magic'; known are identity"):
        create_aligner("magic")
    write_artifact(str(tmp_path), {"method": "magic"}, {})
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        load_aligner(str(tmp_path))
    with pytest.raises(ValueError, match="missing"):
        load_aligner(str(tmp_path / "nowhere"))


def test_the_package_offers_its_names_without_loading_torch():
    for name in pipeline.align.__all__:
        assert getattr(pipeline.align, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipeline.align.nothing
    code = "import sys, pipeline.align; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
