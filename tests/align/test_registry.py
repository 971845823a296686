import subprocess
import sys
from dataclasses import fields

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
    displacement=0.3,
    moment=MomentSettings(map="whitening"),
    permuted=PermutedSettings(images=40),
    oracle=OracleSettings(share=0.25, directions=3),
    c3=C3Settings(deviation=0.2),
    prior=SMALL.prior,
    refiner=SMALL.refiner,
)
"""Nothing at its default."""


def substitutes(aligner):
    if aligner.method in PAIRED_METHODS:
        return aligner.transform_pairs(IMAGE, TEXT)
    return aligner.transform(TEXT)


@pytest.mark.parametrize("settings", [SMALL, CHANGED], ids=["small", "changed"])
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
        assert aligner.settings == AnisoAlignSettings(**used)
        assert aligner.seed == 3
        assert create_aligner(method).settings == AnisoAlignSettings()


OWN = {
    "identity": set(),
    "centroid": set(),
    "moment": {"map"},
    "permuted": {"images", "seed"},
    "oracle": {"share", "directions"},
    "c3": {"deviation", "seed"},
    "unicorn": set(),
    "realign": set(),
    "bures-block": {"rank", "mixing", "ridge", "displacement", "seed"},
    "bures-subspace": {"rank", "mixing", "ridge", "displacement", "seed"},
}


@pytest.mark.parametrize("method", OWN)
def test_the_configuration_is_what_the_method_uses_and_no_more(method):
    plain = create_aligner(method, AlignSettings(), 0).configuration()
    changed = create_aligner(method, CHANGED, 1).configuration()
    assert set(plain) == set(changed) == {"method"} | OWN[method]
    assert {name for name in plain if plain[name] != changed[name]} == OWN[method]


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
