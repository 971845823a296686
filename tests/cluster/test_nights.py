"""Ten nights, on a folder and on an object store behind a faulty network."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from pipeline.align import load_aligner
from pipeline.benchmarks.faults import rows_digest
from pipeline.report.console import Reporter
from pipeline.storage import locations, open_manifest, versions
from pipeline.storage.lease import Lease, LeaseHeldError
from tests.cluster.conftest import World
from tests.cluster.nights import KilledAfter, Nights, times_unchanged


@pytest.fixture
def nights(local_ray: None, place: str, world: World) -> Nights:
    captions = list(world.captions)
    random.Random(5).shuffle(captions)
    return Nights(place, str(world.images), captions)


def test_a_damaged_aligner_is_not_fitted_again_unasked(
    local_ray: None, tmp_path: Path, world: World
):
    """Another aligner would correct everything anew: a refit that was killed is undone instead."""
    nights = Nights(str(tmp_path), str(world.images), world.captions)
    nights.new_rows("a", units=3)
    first = nights.run()
    before = rows_digest(nights.dataset)
    aligner = tmp_path / "run/aligner"
    kept = tmp_path / "kept"
    shutil.copytree(aligner, kept)
    (aligner / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"by which the current version was made, is gone"):
        nights.run()
    fingerprint = json.loads((kept / "config.json").read_text())["fingerprint"]
    shutil.copytree(kept, tmp_path / "run/aligners" / fingerprint[:16])
    again = nights.run()
    assert again["unchanged"]
    assert again["version"] == first["version"]
    assert rows_digest(nights.dataset) == before
    assert (aligner / "model.safetensors").read_bytes() != b"half"

    # Drift from an aligner that does not say what it was fitted on cannot be measured.
    load_aligner(str(aligner)).save(str(tmp_path / "plain"), {})
    nights.new_rows("b", units=1)
    path = {"path": str(tmp_path / "plain")}
    with pytest.raises(ValueError, match=r"carries no statistics .*nightly.on_drift to warn"):
        nights.run(aligner=path, nightly={"on_drift": "fail"})
    plain = nights.run(aligner=path)
    assert (plain["drift"], plain["added"], plain["unchanged"]) == (None, 1, False)

    # Another encoder is refused before anything is encoded with it.
    with pytest.raises(ValueError, match=r"was fitted on 128-wide .*use the same encoder"):
        nights.run(encoder={"model": "RN50", "pretrained": "random"})
    assert len(versions(f"{nights.root}/run/embeddings/text")) == 2


@pytest.mark.timeout(1800)  # a slow store fails 5 % of the requests, and many of those by silence
def test_ten_nights(nights: Nights):
    # 1: the first night fits the aligner.
    nights.new_rows("a", units=3)
    nights.new_rows("b", units=2)
    first = nights.run()
    assert first["fit"] is not None
    assert (first["added"], first["removed"], first["kept"]) == (5, 0, 0)
    assert first["drift"]["exceeded"] == []
    nights.check()

    # 2: additions. The shards of before are not touched.
    nights.new_rows("c", units=2)
    assert nights.pending() == {"new_units": 2, "vanished_units": 0}
    with times_unchanged(nights.dataset):
        second = nights.run()
    assert second["fit"] is None
    assert (second["added"], second["removed"], second["kept"]) == (2, 0, 5)
    assert second["parent"] == first["version"]
    assert second["drift"]["fresh"]["rows"] == 50
    assert second["drift"]["corpus"]["rows"] == 175
    nights.check()

    # 3: an edit changes one unit.
    nights.edit("a", 30)
    with times_unchanged(nights.dataset):
        third = nights.run()
    assert (third["added"], third["removed"], third["kept"]) == (1, 1, 6)
    assert third["drift"]["fresh"]["rows"] == 25
    nights.check()

    # 4: deletions of a file, and of the end of another.
    nights.delete("b")
    nights.write("c", nights.files["c"][:30])
    assert nights.pending() == {"new_units": 1, "vanished_units": 3}
    fourth = nights.run()
    assert (fourth["added"], fourth["removed"], fourth["kept"]) == (1, 3, 4)
    nights.check(on_ray=True)

    # 5: an unchanged night makes no version; nor does a file by another name.
    with times_unchanged(nights.dataset):
        fifth = nights.run()
    assert fifth["unchanged"]
    assert fifth["version"] == fourth["version"]
    assert len(versions(nights.dataset)) == 4
    lines = nights.files["c"]
    nights.delete("c")
    nights.write("renamed", lines)
    assert nights.run()["unchanged"]

    # 6: a drifted night is refused, and published when it is accepted.
    before = rows_digest(nights.dataset)
    odd = [f"{number} {number + 1} {number + 2}" for number in range(75)]
    nights.new_rows("odd", units=3, captions=odd)
    with pytest.raises(
        ValueError, match=r"drifted from .*centroid of the new text .*stays current"
    ):
        nights.run(nightly={"on_drift": "fail"})
    assert rows_digest(nights.dataset) == before
    sixth = nights.run()
    assert sixth["drift"]["exceeded"]
    assert sixth["fit"] is None
    assert sixth["added"] == 3
    assert open_manifest(nights.dataset).drift == sixth["drift"]
    nights.check()

    # 7: a night killed twice goes on where it was.
    nights.delete("odd")
    nights.new_rows("d", units=4)
    before = rows_digest(nights.dataset)
    for units in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            nights.run(KilledAfter(units))
        assert rows_digest(nights.dataset) == before
    with times_unchanged(nights.dataset):
        seventh = nights.run()
    assert (seventh["added"], seventh["removed"]) == (4, 3)
    nights.check()

    # 8: two nights at once: the second is told who holds the output, and nothing is lost.
    nights.new_rows("e", units=1)
    with (
        Lease.acquire(f"{nights.root}/run", run_id="the-other-run", command="nightly"),
        pytest.raises(LeaseHeldError, match=r"the-other-run"),
    ):
        nights.run()
    assert nights.run()["added"] == 1
    nights.check()

    # 9: past a threshold the aligner is fitted again; the old one is kept, all is corrected anew.
    nights.new_rows("odd", units=3, captions=odd[::-1])
    old = open_manifest(nights.dataset).aligner
    ninth = nights.run(nightly={"on_drift": "refit"})
    assert ninth["fit"] is not None
    assert ninth["drift"]["before_refit"]["exceeded"]
    assert ninth["drift"]["corpus"]["centroid"] < 0.01
    assert old is not None
    kept = f"{nights.root}/run/aligners/{old['fingerprint'][:16]}/config.json"
    assert json.loads(locations.read_bytes(kept))["fingerprint"] == old["fingerprint"]
    nights.check()

    # 10: everything at once; older versions are left as many as asked for.
    nights.delete("odd")
    nights.edit("d", 0)
    nights.new_rows("f", units=1)
    tenth = nights.run(Reporter(quiet=True), nightly={"keep_versions": 2})
    assert not tenth["unchanged"]
    assert len(versions(nights.dataset)) == 2
    nights.check(on_ray=True)
