import dataclasses
import json

import pytest

from pipeline.storage import (
    commit,
    describe,
    difference,
    locations,
    open_manifest,
    rollback,
    verify,
    versions,
)
from pipeline.storage.lease import Lease, LeaseHeldError, LeaseLostError
from tests.storage.samples import write_dataset


def recommit(root, receipts, **fields):
    options = {
        "kind": "text-embeddings",
        "dimension": 8,
        "dtype": "float16",
        "source": {"path": "captions.jsonl"},
        "config": {},
        "encoder": {"model": "toy", "fingerprint": "abc"},
        **fields,
    }
    return commit(root, receipts=receipts, **options)


def three_versions(root, folder):
    """All units; all but the first; the last alone, with another aligner and some drift."""
    first, receipts = write_dataset(root, folder)
    second = recommit(root, receipts[1:], run_id="run-2")
    drift = {"exceeded": [], "corpus": {"mean": 0.25}}
    third = recommit(root, receipts[2:], aligner={"fingerprint": "f3"}, drift=drift)
    return [first, second, third], receipts


def test_each_version_in_figures(place, tmp_path):
    made, _ = three_versions(place, tmp_path / "in")
    seen = []
    found = describe(place, lambda done, of: seen.append((done, of)))
    assert [one.version for one in found] == [one.version for one in made]
    assert [one.current for one in found] == [False, False, True]
    assert [(one.added, one.removed, one.kept) for one in found] == [
        (3, 0, 0),
        (0, 1, 2),
        (0, 1, 1),
    ]
    assert [(one.rows, one.units, one.rejected) for one in found] == [
        (27, 3, 3),
        (18, 2, 2),
        (9, 1, 1),
    ]
    assert [one.run for one in found] == ["", "run-2", ""]
    assert [one.parent for one in found] == [None, made[0].version, made[1].version]
    assert found[2].aligner == "f3"
    assert found[2].drift == {"exceeded": [], "corpus": {"mean": 0.25}}
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_damaged_manifest_is_a_line_not_the_end(tmp_path):
    root = str(tmp_path / "out")
    made, _ = three_versions(root, tmp_path / "in")
    (tmp_path / "out" / "versions" / f"{made[0].version}.json").write_text("{")
    found = describe(root)
    assert "is damaged" in found[0].problem
    assert [one.problem for one in found[1:]] == [None, None]
    assert found[2].current


def test_manifests_of_earlier_releases(tmp_path):
    root = str(tmp_path / "out")
    manifest, _ = write_dataset(root, tmp_path / "in")
    where = tmp_path / "out" / "versions" / f"{manifest.version}.json"
    value = json.loads(where.read_text())
    for name in ("run", "changes", "drift", "names"):
        del value[name]
    where.write_text(json.dumps(value))
    (found,) = describe(root)
    assert (found.added, found.removed, found.kept, found.problem) == (None, None, None, None)
    assert rollback(root, manifest.version, "run").changes == {}
    assert verify(root).problems == ()


def test_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="no dataset"):
        describe(str(tmp_path))
    with pytest.raises(ValueError, match="has no version"):
        rollback(str(tmp_path), "000001-00000000", "run")
    assert not list(tmp_path.iterdir())


def test_what_differs(tmp_path):
    root = str(tmp_path / "out")
    made, receipts = three_versions(root, tmp_path / "in")
    source = receipts[0].source["path"]
    found = difference(root, made[0].version)
    assert (found.older, found.newer) == (made[0].version, made[2].version)
    assert list(found.files) == [source]
    assert found.files[source] == found.total
    total = found.total
    assert (total.added_units, total.removed_units, total.kept_units) == (0, 2, 1)
    assert (total.added_rows, total.removed_rows, total.kept_rows) == (0, 18, 9)
    assert found.rewritten_units == 0
    assert found.settings["aligner.fingerprint"] == (None, "f3")
    assert found.settings["config.text.path"] == (source, None)
    assert not any(name.startswith("encoder") for name in found.settings)
    back = difference(root, made[2].version, made[0].version)
    assert (back.total.added_rows, back.total.removed_rows) == (18, 0)


def test_what_differs_by_source_file(tmp_path):
    root = str(tmp_path / "out")
    manifest, receipts = write_dataset(root, tmp_path / "in")
    moved = dataclasses.replace(
        receipts[0], unit="other", source={**receipts[0].source, "path": "b.jsonl"}
    )
    again = dataclasses.replace(receipts[1], sha256="1" * 64)
    recommit(root, [moved, again])
    found = difference(root, manifest.version)
    source = receipts[0].source["path"]
    assert list(found.files) == sorted([source, "b.jsonl"])
    assert found.files["b.jsonl"].added_units == 1
    assert (found.files[source].removed_units, found.files[source].kept_units) == (2, 1)
    assert found.rewritten_units == 1


def test_back_and_on_again(place, tmp_path):
    made, receipts = three_versions(place, tmp_path / "in")
    assert rollback(place, made[0].version, "run") == made[0]
    assert open_manifest(place) == made[0]
    assert verify(place).problems == ()
    card = locations.read_bytes(locations.join(place, "README.md")).decode()
    assert all(one.path in card for one in receipts)
    fourth = recommit(place, receipts[:1])
    assert fourth.version.startswith("000004-")
    assert fourth.parent == made[0].version
    assert versions(place)[:3] == [one.version for one in made]


@pytest.mark.parametrize("damage", ["shard", "quarantine", "short"])
def test_a_version_that_is_not_whole_stays_where_it_is(tmp_path, damage):
    root = tmp_path / "out"
    made, receipts = three_versions(str(root), tmp_path / "in")
    path = root / (receipts[0].quarantine_path if damage == "quarantine" else receipts[0].path)
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=f"not whole: .*{path.name}"):
        rollback(str(root), made[0].version, "run")
    assert open_manifest(str(root)) == made[2]


def test_a_version_that_was_changed(tmp_path):
    root = tmp_path / "out"
    made, _ = three_versions(str(root), tmp_path / "in")
    where = root / "versions" / f"{made[0].version}.json"
    where.write_text(where.read_text().replace('"model": "toy"', '"model": "tin"'))
    with pytest.raises(ValueError, match="was changed after it was written"):
        rollback(str(root), made[0].version, "run")
    assert open_manifest(str(root)) == made[2]


def test_a_lost_pointer_is_mended(tmp_path):
    root = tmp_path / "out"
    made, _ = three_versions(str(root), tmp_path / "in")
    (root / "current.json").write_text("{")
    assert not any(one.current for one in describe(str(root)))
    with pytest.raises(ValueError, match="anisoalign rollback"):
        open_manifest(str(root))
    rollback(str(root), made[1].version, "run")
    assert open_manifest(str(root)) == made[1]


def test_not_while_another_writes(tmp_path):
    root = str(tmp_path / "out")
    made, _ = three_versions(root, tmp_path / "in")
    with (
        Lease.acquire(root, run_id="other", command="nightly"),
        pytest.raises(LeaseHeldError, match="nightly"),
    ):
        rollback(root, made[0].version, "run")
    assert open_manifest(root) == made[2]
    rollback(root, made[0].version, "run")


def test_not_after_the_lease_was_lost(tmp_path, monkeypatch):
    root = str(tmp_path / "out")
    made, _ = three_versions(root, tmp_path / "in")

    def lost(lease):
        raise LeaseLostError("lost")

    monkeypatch.setattr(Lease, "check", lost)
    with pytest.raises(LeaseLostError):
        rollback(root, made[0].version, "run")
    assert open_manifest(root) == made[2]


@pytest.mark.parametrize("writes", range(2))
def test_a_crash_between_any_two_writes_leaves_a_whole_dataset(tmp_path, monkeypatch, writes):
    root = str(tmp_path / "out")
    made, _ = three_versions(root, tmp_path / "in")
    real, done = locations.write_bytes, []

    def crash(url, data):
        if "/lease/" not in url:
            if len(done) == writes:
                raise ValueError("crash")
            done.append(url)
        real(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(locations, "write_bytes", crash)
        with pytest.raises(ValueError, match="crash"):
            rollback(root, made[0].version, "run")
    assert len(done) == writes
    assert open_manifest(root) == made[2]
    assert verify(root).problems == ()
    rollback(root, made[0].version, "run")
    assert open_manifest(root) == made[0]
