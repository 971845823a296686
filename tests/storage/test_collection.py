import dataclasses
import os
import time

import numpy as np
import pytest

from pipeline.storage import (
    collect,
    commit,
    describe,
    locations,
    open_manifest,
    plan,
    plan_collection,
    read_unit,
    rollback,
    verify,
    versions,
    write_unit,
)
from pipeline.storage.id_hashes import write_id_hashes
from pipeline.storage.lease import Lease, LeaseHeldError, LeaseLostError
from tests.storage.samples import encoded, text_corpus
from tests.storage.test_history import three_versions


class _CrashError(Exception):
    pass


def names(root):
    """All files of the dataset but its lease's."""
    return {
        entry.name for entry in locations.list_files(root) if not entry.name.startswith("lease/")
    }


def with_hashes(root, folder):
    """Three versions, and hashes of each unit's ids."""
    made, receipts = three_versions(root, folder)
    corpus = text_corpus(folder / "captions.jsonl", passed_through=("conversations",))
    for unit in plan(corpus, 10).units:
        write_id_hashes(root, corpus, unit, np.zeros((2, 2), np.uint64))
    return made, receipts


def test_what_old_versions_alone_need_goes(place, tmp_path):
    made, receipts = with_hashes(place, tmp_path / "in")
    before = names(place)
    found = plan_collection(place, 2)
    assert names(place) == before
    assert found.dropped == (made[0].version,)
    assert found.kept == (made[1].version, made[2].version)
    gone = receipts[0]
    stem = gone.path.removeprefix("data/").removesuffix(".parquet")
    hashes = next(name for name in before if name.startswith(f"ids/{gone.unit}"))
    assert set(found.files) == {
        gone.path,
        gone.quarantine_path,
        f"receipts/{stem}.json",
        hashes,
    }
    assert found.bytes > gone.bytes + gone.quarantine_bytes
    assert collect(place, 2, "run") == found
    assert before - names(place) == {*found.files, f"versions/{made[0].version}.json"}
    assert verify(place).problems == ()
    assert verify(place, version=made[1].version).problems == ()
    assert collect(place, 2, "run").files == ()


def test_the_current_version_stays_however_old(place, tmp_path):
    made, _ = with_hashes(place, tmp_path / "in")
    rollback(place, made[0].version, "run")
    assert plan_collection(place, 2).kept == (made[0].version, made[2].version)
    found = collect(place, 1, "run")
    assert found.kept == (made[0].version,)
    assert found.dropped == (made[1].version, made[2].version)
    assert found.files == ()  # the first version has every unit
    assert versions(place) == [made[0].version]
    assert verify(place).problems == ()


@pytest.mark.parametrize("keep", [3, 4, 100])
def test_few_versions_all_stay(tmp_path, keep):
    root = str(tmp_path / "out")
    made, _ = with_hashes(root, tmp_path / "in")
    assert collect(root, keep, "run").dropped == ()
    assert versions(root) == [one.version for one in made]


def test_none_at_all_is_refused(tmp_path):
    root = str(tmp_path / "out")
    with_hashes(root, tmp_path / "in")
    for keep in (0, -1):
        with pytest.raises(ValueError, match="give 1 or more"):
            collect(root, keep, "run")


def test_files_of_other_names_are_not_ours(tmp_path):
    root = tmp_path / "out"
    with_hashes(str(root), tmp_path / "in")
    theirs = [
        "notes.txt",
        "data/notes.txt",
        "data/mine.parquet",
        f"data/sub/{'0' * 32}.parquet",
        f"data/{'0' * 31}.parquet",
        f"data/{'0' * 32}.parquet.bak",
        "quarantine/mine.parquet",
        "receipts/mine.json",
        "ids/mine.hashes",
        "versions/notes.json",
        "statistics/segment.safetensors",
        "data/.hidden",
    ]
    for name in theirs:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    collect(str(root), 1, "run")
    assert [name for name in theirs if not (root / name).exists()] == []


def test_shards_of_a_run_that_did_not_finish_go(tmp_path):
    root = tmp_path / "out"
    with_hashes(str(root), tmp_path / "in")
    stem = "0" * 32
    left = [f"data/{stem}.parquet", f"quarantine/{stem}.parquet", f"receipts/{stem}.json"]
    for name in left:
        (root / name).write_text("x")
    assert {*left} < {*collect(str(root), 3, "run").files, "other"}
    assert not any((root / name).exists() for name in left)


def test_leftovers_go_and_young_ones_stay(tmp_path):
    root = tmp_path / "out"
    with_hashes(str(root), tmp_path / "in")
    old, young = (root / "data" / f".x.parquet.{sign * 32}.tmp" for sign in "ab")
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert collect(str(root), 3, "run").leftovers == 1
    assert not old.exists()
    assert young.exists()


def test_manifests_go_before_what_they_name(tmp_path, monkeypatch):
    """A crash at any deletion leaves no manifest that names a missing file."""
    root = str(tmp_path / "out")
    made, _ = with_hashes(root, tmp_path / "in")
    real = locations.remove_files
    crashes = 0
    for allowed in range(20):
        done = []

        def limited(urls, done=done, allowed=allowed):
            for url in urls:
                if "/lease/" not in url:
                    if len(done) == allowed:
                        raise _CrashError
                    done.append(url)
                real([url])

        with monkeypatch.context() as patch:
            patch.setattr(locations, "remove_files", limited)
            try:
                collect(root, 1, "run")
            except _CrashError:
                crashes += 1
        for version in versions(root):
            assert verify(root, version=version).problems == ()
        assert open_manifest(root) == made[2]
    assert crashes >= 4
    assert versions(root) == [made[2].version]
    assert plan_collection(root, 1).files == ()


def test_the_card_names_what_stays(tmp_path, monkeypatch):
    root = tmp_path / "out"
    made, receipts = with_hashes(str(root), tmp_path / "in")
    card = (root / "README.md").read_text()
    (root / "README.md").write_text(card.replace(receipts[2].path, receipts[0].path))
    collect(str(root), 1, "run")
    assert (root / "README.md").read_text() == card
    assert open_manifest(str(root)) == made[2]


def test_not_while_another_writes(tmp_path):
    root = str(tmp_path / "out")
    with_hashes(root, tmp_path / "in")
    before = names(root)
    with (
        Lease.acquire(root, run_id="other", command="nightly"),
        pytest.raises(LeaseHeldError, match="nightly"),
    ):
        collect(root, 1, "run")
    assert names(root) == before


def test_nothing_after_the_lease_was_lost(tmp_path, monkeypatch):
    root = str(tmp_path / "out")
    with_hashes(root, tmp_path / "in")
    before = names(root)

    def lost(lease):
        raise LeaseLostError("lost")

    monkeypatch.setattr(Lease, "check", lost)
    with pytest.raises(LeaseLostError):
        collect(root, 1, "run")
    assert names(root) == before


def test_a_damaged_manifest_that_is_kept_stops_it(tmp_path):
    root = tmp_path / "out"
    made, _ = with_hashes(str(root), tmp_path / "in")
    where = root / "versions" / f"{made[1].version}.json"
    where.write_text("{")
    before = names(str(root))
    with pytest.raises(ValueError, match=f"{made[1].version} .*would be kept"):
        collect(str(root), 2, "run")
    assert names(str(root)) == before
    collect(str(root), 1, "run")
    assert [one.problem for one in describe(str(root))] == [None]


def test_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="no dataset"):
        collect(str(tmp_path), 1, "run")
    assert not list(tmp_path.iterdir())


def test_progress(tmp_path):
    root = str(tmp_path / "out")
    with_hashes(root, tmp_path / "in")
    seen = []
    found = collect(root, 1, "run", lambda done, of: seen.append((done, of)))
    assert seen == [(len(found.files), len(found.files))]


def test_hashes_of_a_unit_that_lost_rows_stay_by_its_planned_key(place, tmp_path):
    """Its shard has another key; its ids were hashed before that was known."""
    (tmp_path / "a.txt").write_text("a\nb\n")
    corpus = text_corpus(tmp_path / "a.txt")
    (unit,) = plan(corpus, 10).units
    write_id_hashes(place, corpus, unit, np.zeros((2, 2), np.uint64))
    renamed = dataclasses.replace(unit, key="0" * 40, planned_key=unit.key)
    receipt = write_unit(
        place,
        unit=renamed,
        fingerprint="f",
        table=encoded(read_unit(corpus, unit)),
        dtype="float16",
        metadata={},
        seconds={},
    )
    assert (receipt.unit, receipt.planned_unit) == ("0" * 40, unit.key)
    commit(
        place,
        kind="text-embeddings",
        dimension=8,
        dtype="float16",
        receipts=[receipt],
        source={},
        config={},
        encoder={},
    )
    assert plan_collection(place, 1).files == ()
