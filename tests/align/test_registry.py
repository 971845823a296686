import subprocess
import sys

import pytest
import torch

import pipeline.align
from pipeline.align import create_aligner, load_aligner
from pipeline.align.settings import METHODS, AnisoAlignSettings
from pipeline.storage import read_artifact, write_artifact
from tests.align.clouds import SMALL, clouds, fitted

TEXT = clouds()[1][:50]


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_keep_every_bit(method, tmp_path):
    aligner = fitted(method)
    provenance = {"encoder": "demo", "rows": 600}
    fingerprint = aligner.save(str(tmp_path / "first"), provenance)
    loaded = load_aligner(str(tmp_path / "first"))
    assert type(loaded) is type(aligner)
    assert torch.equal(loaded.transform(TEXT), aligner.transform(TEXT))
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
        assert aligner.settings == SMALL
        assert aligner.seed == 3
        assert create_aligner(method).settings == AnisoAlignSettings()


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
