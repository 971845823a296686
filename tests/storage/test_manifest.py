import dataclasses
import hashlib
import json
import uuid

import pytest

from pipeline.storage import (
    Manifest,
    Receipt,
    commit,
    describe,
    locations,
    open_manifest,
    plan_collection,
    versions,
)
from pipeline.storage.locations import StoreError
from pipeline.storage.places import redacted
from tests.storage.samples import write_dataset


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "out")


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


def test_a_commit_is_opened(root, tmp_path):
    manifest, receipts = write_dataset(root, tmp_path / "in")
    assert open_manifest(root) == manifest
    assert open_manifest(root, manifest.version) == manifest
    assert versions(root) == [manifest.version]
    assert manifest.version.startswith("000001-")
    assert (manifest.rows, manifest.units, manifest.parent) == (27, 3, None)
    assert manifest.quarantined == {"empty": 3}
    assert sorted(one.path for one in receipts) == [one.path for one in manifest.receipts]
    card = locations.read_bytes(locations.join(root, "README.md")).decode()
    assert all(f"- {one.path}\n" in card for one in receipts)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Receipt.from_json(receipts[0].to_json()) == receipts[0]


def test_a_commit_on_any_store(place, tmp_path):
    manifest, receipts = write_dataset(place, tmp_path / "in")
    assert open_manifest(place) == manifest
    second = recommit(place, receipts[1:])
    assert open_manifest(place) == second
    assert open_manifest(place, manifest.version) == manifest
    assert versions(place) == [manifest.version, second.version]


def test_what_changed_against_the_parent(root, tmp_path):
    first, receipts = write_dataset(root, tmp_path / "in")
    keys = [receipt.unit for receipt in receipts]
    assert first.changes == {"added": sorted(keys), "removed": [], "kept": []}
    second = recommit(root, receipts[:2], run_id="night-2", drift={"mean": 0.5})
    assert second.changes == {"added": [], "removed": keys[2:], "kept": sorted(keys[:2])}
    assert (second.run, second.drift) == ("night-2", {"mean": 0.5})
    third = recommit(root, receipts[1:])
    assert third.changes == {"added": keys[2:], "removed": keys[:1], "kept": keys[1:2]}
    assert (third.run, third.drift) == ("", None)
    assert open_manifest(root, second.version) == second


def test_who_ran_it_and_what_it_measured_make_no_version(root, tmp_path):
    manifest, receipts = write_dataset(root, tmp_path / "in")
    assert recommit(root, receipts, run_id="again", drift={"mean": 1.0}) == manifest
    assert open_manifest(root).run == ""


def test_manifests_of_earlier_releases_are_read(root, tmp_path):
    manifest, receipts = write_dataset(root, tmp_path / "in")

    def older(value):
        for name in ("run", "changes", "drift", "names"):
            del value[name]

    edit(root, manifest, older)
    found = open_manifest(root, manifest.version)
    assert found == dataclasses.replace(manifest, changes={})
    assert (found.run, found.drift) == ("", None)
    where = locations.join(root, "versions", f"{manifest.version}.json")
    sha256 = hashlib.sha256(locations.read_bytes(where)).hexdigest()
    pointer = json.dumps({"version": manifest.version, "sha256": sha256}).encode()
    locations.write_bytes(locations.join(root, "current.json"), pointer)
    assert recommit(root, receipts) == found
    second = recommit(root, receipts[:1])
    assert len(second.changes["removed"]) == 2


def test_nothing_is_published_when_the_last_check_fails(root, tmp_path):
    manifest, receipts = write_dataset(root, tmp_path / "in")
    seen = []

    card = locations.read_bytes(locations.join(root, "README.md"))

    def lost_at(check):
        def lost():
            seen.append(len(versions(root)))
            if len(seen) == check:
                raise ValueError("lease lost")

        return lost

    for check, there in ((1, [1]), (2, [1, 2]), (3, [2, 3, 3])):
        seen.clear()
        with pytest.raises(ValueError, match="lease lost"):
            recommit(root, receipts[:1], before_publish=lost_at(check))
        assert open_manifest(root) == manifest
        assert seen == there  # once before the manifest, the card and the pointer each
        same = locations.read_bytes(locations.join(root, "README.md")) == card
        assert same == (check < 3)
    again = recommit(root, receipts[:1], before_publish=lambda: None)
    assert open_manifest(root) == again
    assert again.version.startswith("000004-")


def test_the_manifest_of_another_writer_is_never_written_over(root, tmp_path, monkeypatch):
    _, receipts = write_dataset(root, tmp_path / "in")
    expected = recommit(root, receipts[:1], run_id="theirs")
    where = locations.join(root, "versions", f"{expected.version}.json")
    theirs = locations.read_bytes(where)
    recommit(root, receipts)
    # As a writer sees it that looked at the versions before the other wrote its own.
    monkeypatch.setattr("pipeline.storage.manifest._next_number", lambda _: 2)
    ours = recommit(root, receipts[:1], run_id="ours")
    assert locations.read_bytes(where) == theirs
    assert ours.version == f"000003-{expected.version.split('-')[1]}"
    assert open_manifest(root).run == "ours"


def test_checking_ids_makes_a_version_of_its_own_and_not_checking_none(root, tmp_path):
    _, receipts = write_dataset(root, tmp_path / "in")
    unchecked = recommit(root, receipts[:1], config={"rejects": {"check_ids": False}})
    assert not unchecked.ids_checked
    checked = recommit(root, receipts[:1], config={"rejects": {"check_ids": True}})
    assert checked.ids_checked
    assert checked.version.startswith("000003-")
    assert open_manifest(root) == checked
    assert recommit(root, receipts[:1], config={"rejects": {"check_ids": False}}) == checked


def test_a_store_that_fails_is_no_damage(root, tmp_path, monkeypatch):
    manifest, _ = write_dataset(root, tmp_path / "in")

    def fail(url):
        raise StoreError(f"cannot read {url}: the store failed")

    monkeypatch.setattr(locations, "read_bytes", fail)
    for read in (
        lambda: open_manifest(root),
        lambda: open_manifest(root, manifest.version),
        lambda: describe(root),
        lambda: plan_collection(root, 1),
    ):
        with pytest.raises(StoreError, match=r"^cannot read"):
            read()


def test_no_number_that_is_none_is_written(root, tmp_path):
    _, receipts = write_dataset(root, tmp_path / "in")
    with pytest.raises(ValueError, match="JSON compliant"):
        recommit(root, receipts[:1], drift={"mean": float("nan")})
    assert len(versions(root)) == 1


def test_nothing_new_is_no_new_version(root, tmp_path):
    manifest, receipts = write_dataset(root, tmp_path / "in")
    slower = [dataclasses.replace(one, seconds={"encode": 9.0}) for one in reversed(receipts)]
    assert recommit(root, slower) == manifest
    assert versions(root) == [manifest.version]


def test_the_same_bytes_by_other_settings_are_a_version(root, tmp_path):
    """Readers of its settings, such as the next fit, have to see those that hold now."""
    manifest, receipts = write_dataset(root, tmp_path / "in")
    others = [dataclasses.replace(one, fingerprint="of other settings") for one in receipts]
    found = recommit(root, others)
    assert found.version != manifest.version
    assert open_manifest(root) == found


def test_each_change_is_a_version_with_its_parent(root, tmp_path):
    first, receipts = write_dataset(root, tmp_path / "in")
    second = recommit(root, receipts[:2])
    third = recommit(root, receipts[:2], encoder={"model": "other"})
    fourth = recommit(root, receipts[:2], encoder={"model": "other"}, aligner={"fingerprint": "f"})
    fifth = recommit(root, receipts)
    sixth = recommit(root, receipts, source={"path": "renamed.jsonl"})
    found = [first, second, third, fourth, fifth, sixth]
    assert versions(root) == [one.version for one in found]
    assert [one.parent for one in found] == [None, *(one.version for one in found[:-1])]
    assert open_manifest(root, first.version) == first
    assert open_manifest(root) == sixth
    assert first.version.split("-")[1] == fifth.version.split("-")[1]


def test_a_version_left_by_a_crash_is_not_overwritten(root, tmp_path):
    manifest, receipts = write_dataset(root, tmp_path / "in")
    left = locations.join(root, "versions", "000007-00000000.json")
    locations.write_bytes(left, b"half")
    assert open_manifest(root) == manifest
    assert recommit(root, receipts[:1]).version.startswith("000008-")


def test_duplicate_units_and_skipped_files_are_counted(root, tmp_path):
    from pipeline.storage import plan
    from tests.storage.samples import text_corpus

    _, receipts = write_dataset(root, tmp_path / "in")
    (tmp_path / "a.txt").write_text("x\ny\n")
    units = plan(text_corpus(tmp_path / "a.txt"), 10).units
    skipped = [{"path": "s3://u:secret@b/x.txt", "why": "is empty"}]
    manifest = recommit(root, receipts, duplicate_units=units, skipped_files=skipped)
    assert manifest.quarantined == {"duplicate_id": 2, "empty": 3}
    assert manifest.duplicate_units[0]["rows"] == 2
    assert manifest.skipped_files[0]["path"] == "s3://***@b/x.txt"
    assert open_manifest(root) == manifest


def test_no_credential_reaches_a_file(tmp_path):
    root = str(tmp_path / "out")
    _, receipts = write_dataset(root, tmp_path / "in")
    secret = "https://me:hunter2@host/x?token=hunter2"
    recommit(
        root,
        receipts[:1],
        config={"text": {"path": secret}, "list": [secret], "n": 1},
        encoder={"pretrained": secret},
        aligner={"path": secret},
    )
    for path in (tmp_path / "out").rglob("*.*"):
        assert b"hunter2" not in path.read_bytes()
    assert redacted({"a": (secret, 1, None)}) == {"a": ("https://***@host/x?***", 1, None)}


def test_there_is_none(root):
    with pytest.raises(ValueError, match=r"no dataset in .*: current\.json is missing"):
        open_manifest(root)


def test_a_version_that_is_not_there_or_no_version(root, tmp_path):
    write_dataset(root, tmp_path / "in")
    with pytest.raises(ValueError, match="has no version 000009-00000000"):
        open_manifest(root, "000009-00000000")
    wrong = ("../current", "latest", "000001-xyz", "/etc/passwd", "000001-00000000\n", "")
    for name in wrong:
        with pytest.raises(ValueError, match="not the name of a version"):
            open_manifest(root, name)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"version": 1, "sha256": "x"}', b'{"version": "x"}', b"[" * 9999]
)
def test_a_damaged_pointer(root, tmp_path, data):
    write_dataset(root, tmp_path / "in")
    locations.write_bytes(locations.join(root, "current.json"), data)
    with pytest.raises(ValueError, match=r"current\.json is damaged"):
        open_manifest(root)


def edit(root, manifest, change):
    where = locations.join(root, "versions", f"{manifest.version}.json")
    value = json.loads(locations.read_bytes(where))
    change(value)
    locations.write_bytes(where, json.dumps(value).encode())


def test_a_manifest_that_was_edited(root, tmp_path):
    manifest, _ = write_dataset(root, tmp_path / "in")
    edit(root, manifest, lambda value: value.update(rows=1))
    with pytest.raises(ValueError, match=r"changed after it was written.*verify"):
        open_manifest(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("rows"),
        lambda value: value.update(rows="many"),
        lambda value: value.update(rows=True),
        lambda value: value.update(more=1),
        lambda value: value.update(receipts=[1]),
        lambda value: value.update(duplicate_units=[1]),
        lambda value: value.update(quarantined={"empty": "x"}),
        lambda value: value["receipts"][0].update(quarantined={"empty": None}),
        lambda value: value["receipts"][0].pop("sha256"),
        lambda value: value["receipts"][0].update(rows=-1),
        lambda value: value["receipts"][0].update(rows=3 * 10**9),
        lambda value: value.update(rows=-1),
        lambda value: value.update(dimension=0),
        lambda value: value.update(run=1),
        lambda value: value.update(drift=[]),
        lambda value: value.update(drift={"mean": float("nan")}),
        lambda value: value.update(drift={"mean": float("inf")}),
        lambda value: value.update(changes={"added": []}),
        lambda value: value["changes"].update(added=[1]),
        lambda value: value["changes"].update(added="all"),
        lambda value: value.update(duplicate_units=[{"unit": "x"}]),
        lambda value: value.update(duplicate_units=[{"rows": 1}]),
    ],
)
def test_a_manifest_of_another_shape(root, tmp_path, change):
    manifest, _ = write_dataset(root, tmp_path / "in")
    edit(root, manifest, change)
    with pytest.raises(ValueError, match="is damaged: not a"):
        open_manifest(root)


@pytest.mark.parametrize("key", ["path", "quarantine_path"])
@pytest.mark.parametrize("path", ["/etc/passwd", "../other/x.parquet"])
def test_paths_that_leave_the_folder(root, tmp_path, key, path):
    manifest, _ = write_dataset(root, tmp_path / "in")
    edit(root, manifest, lambda value: value["receipts"][0].update({key: path}))
    with pytest.raises(ValueError, match="refused"):
        open_manifest(root, manifest.version)


def test_a_manifest_under_another_name(root, tmp_path):
    manifest, _ = write_dataset(root, tmp_path / "in")
    data = locations.read_bytes(locations.join(root, "versions", f"{manifest.version}.json"))
    locations.write_bytes(locations.join(root, "versions", "000002-00000000.json"), data)
    with pytest.raises(ValueError, match="it says that it is version"):
        open_manifest(root, "000002-00000000")


def test_a_newer_schema(root, tmp_path):
    manifest, _ = write_dataset(root, tmp_path / "in")
    edit(root, manifest, lambda value: value.update(schema_version=99))
    with pytest.raises(ValueError, match="update anisoalign"):
        open_manifest(root, manifest.version)
