"""Every export: whole or resumed, the same bytes; refusals; damage."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.export import CONVERSATIONAL_FORMATS, FORMATS, exporting
from pipeline.export.card import CardFacts
from pipeline.export.conversations import ConversationSettings, Exchange
from pipeline.export.exporting import LAYOUTS
from pipeline.names import Names
from pipeline.storage import locations, open_manifest
from pipeline.storage.lease import Lease, LeaseHeldError
from tests.export.samples import (
    captions,
    check_sums,
    contents,
    run,
    write_substitutes,
)


class Killed(BaseException):
    """What stands for a process that dies."""


def kill_before(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let an export die where it would write a part."""
    real = exporting._write_part

    def dying(job, this, receipt):
        if this == number:
            raise Killed
        return real(job, this, receipt)

    monkeypatch.setattr(exporting, "_write_part", dying)


def test_the_formats_are_those_that_have_a_layout():
    assert set(FORMATS) == set(LAYOUTS)
    talking = {name for name, layout in LAYOUTS.items() if layout.has_conversations}
    assert set(CONVERSATIONAL_FORMATS) == talking


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_whole_and_its_bytes_are_always_the_same(name, dataset, tmp_path):
    seen = []
    report = run(dataset, tmp_path / "a", name, progress=lambda *counts: seen.append(counts))
    assert (report.parts, report.reused, report.rows) == (3, 0, 30)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert report.version == open_manifest(dataset).version
    check_sums(tmp_path / "a")
    state = json.loads((tmp_path / "a" / "export.json").read_text())
    assert (state["format"], state["version"]) == (name, report.version)
    again = run(dataset, tmp_path / "b", name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    others = ("export.json", "checksums.sha256", "parts/")
    files = [
        path for path in (tmp_path / "a").rglob("*")
        if path.is_file() and not str(path.relative_to(tmp_path / "a")).startswith(others)
    ]  # fmt: skip
    assert again.bytes == report.bytes == sum(path.stat().st_size for path in files)
    assert not (tmp_path / "a" / "lease").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_an_interrupted_export_goes_on(name, dataset, tmp_path, monkeypatch):
    run(dataset, tmp_path / "whole", name)
    target = tmp_path / "killed"
    with monkeypatch.context() as patch:
        kill_before(patch, 2)
        with pytest.raises(Killed):
            run(dataset, target, name)
    assert not (target / "checksums.sha256").exists()
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    assert len([path for path in before if path.parent.name == "parts"]) >= 2
    report = run(dataset, target, name)
    assert (report.parts, report.reused) == (3, 2)
    assert contents(target) == contents(tmp_path / "whole")
    check_sums(target)
    kept = [path for path in before if "lease" not in path.parts and path.suffix != ".entries"]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


@pytest.mark.parametrize("name", ["llava", "mds"])
def test_an_export_that_died_before_its_index_goes_on(name, dataset, tmp_path, monkeypatch):
    run(dataset, tmp_path / "whole", name)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "checksums", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(dataset, tmp_path / "killed", name)
    assert run(dataset, tmp_path / "killed", name).reused == 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", FORMATS)
def test_a_finished_export_is_left_as_it_is(name, dataset, tmp_path):
    first = run(dataset, tmp_path / "out", name)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = run(dataset, tmp_path / "out", name)
    assert (again.reused, again.bytes, again.rows) == (3, first.bytes, first.rows)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_a_finished_export_lost_is_written_again(name, dataset, tmp_path):
    run(dataset, tmp_path / "out", name)
    before = contents(tmp_path / "out")
    state = ("export.json", "parts", "checksums.sha256", "README.md")
    lost = next(path for path in sorted(before) if not path.startswith(state))
    (tmp_path / "out" / lost).write_bytes(b"short")
    run(dataset, tmp_path / "out", name)
    assert contents(tmp_path / "out") == before


def test_a_receipt_that_was_changed_counts_for_nothing(dataset, tmp_path):
    run(dataset, tmp_path / "out", "npy")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "parts" / "00001.json").write_text('{"rows": 10}')
    assert run(dataset, tmp_path / "out", "npy").reused == 2
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", FORMATS)
def test_processes_write_the_same(name, dataset, tmp_path):
    run(dataset, tmp_path / "one", name)
    report = run(dataset, tmp_path / "two", name, workers=2)
    assert (report.parts, report.reused, report.rows) == (3, 0, 30)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("name", ["hf", "llava", "mds"])
def test_an_export_on_any_store(name, dataset, place, tmp_path):
    target = locations.join(place, "out")
    report = run(dataset, target, name)
    assert run(dataset, target, name).reused == report.parts == 3
    run(dataset, tmp_path / "local", name)
    assert contents(target) == contents(tmp_path / "local")


def test_a_dataset_on_any_store(place, tmp_path):
    root = locations.join(place, "dataset")
    write_substitutes(root, tmp_path / "source")
    assert run(root, tmp_path / "out", "webdataset").rows == 30
    check_sums(tmp_path / "out")


def test_processes_on_an_object_store(bucket_folder, tmp_path):
    write_substitutes(f"{bucket_folder}/dataset", tmp_path / "source")
    run(f"{bucket_folder}/dataset", f"{bucket_folder}/out", "revision", workers=2)
    run(f"{bucket_folder}/dataset", tmp_path / "out", "revision")
    found = contents(f"{bucket_folder}/out")
    assert found == contents(tmp_path / "out")


@pytest.fixture
def own(tmp_path):
    """A dataset that a test may damage."""
    root = tmp_path / "dataset"
    write_substitutes(str(root), tmp_path / "source")
    return root


def second_shard(root: Path) -> Path:
    return root / sorted(one.path for one in open_manifest(str(root)).receipts)[1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (flip, "is damaged: its sha256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: "),
    ],
    ids=["missing", "flipped", "cut"],
)
def test_a_shard_that_is_not_whole_ends_the_export(own, tmp_path, harm, said, workers):
    shard = second_shard(own)
    whole = shard.read_bytes()
    harm(shard)
    with pytest.raises(ValueError, match=f"{shard.name} {said}"):
        run(str(own), tmp_path / "out", "hf", workers=workers)
    assert not (tmp_path / "out" / "checksums.sha256").exists()
    assert not (tmp_path / "out" / "README.md").exists()
    assert not (tmp_path / "out" / "data" / "train-00001-of-00003.parquet").exists()
    shard.write_bytes(whole)
    run(str(own), tmp_path / "out", "hf")
    check_sums(tmp_path / "out")


def test_only_substitutes_of_known_versions_are_exported(own, tmp_path):
    with pytest.raises(ValueError, match="has no version 000009-01234567"):
        run(str(own), tmp_path / "out", "hf", version="000009-01234567")
    with pytest.raises(ValueError, match="there is no dataset in"):
        run(str(tmp_path / "lost"), tmp_path / "out", "hf")
    write_substitutes(str(tmp_path / "texts"), tmp_path / "s", kind="text-embeddings")
    with pytest.raises(ValueError, match="holds text-embeddings, and only substitutes"):
        run(str(tmp_path / "texts"), tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_an_earlier_version_is_pinned(own, tmp_path):
    first = open_manifest(str(own)).version
    run(str(own), tmp_path / "first", "npy")
    more = captions(50)
    second = write_substitutes(str(own), tmp_path / "source2", more).version
    assert first != second
    assert run(str(own), tmp_path / "again", "npy", version=first).rows == 30
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert run(str(own), tmp_path / "now", "npy").rows == 50
    with pytest.raises(
        ValueError, match=f"of version {first}, not of {second}; go on with --version"
    ):
        run(str(own), tmp_path / "first", "npy")


def test_a_target_that_holds_something_else_is_refused(dataset, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\)"):
        run(dataset, target, "hf")
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]
    (target / "thesis.tex").rename(target / "export.json")
    with pytest.raises(ValueError, match=r"export.json is damaged: .*give an empty folder"):
        run(dataset, target, "hf")


def test_another_export_is_refused(dataset, tmp_path):
    target = tmp_path / "out"
    run(dataset, target, "llava")
    before = contents(target)
    with pytest.raises(ValueError, match=r"another format \(llava, not mds\)"):
        run(dataset, target, "mds")
    with pytest.raises(ValueError, match=r"other options \(license\)"):
        run(dataset, target, "llava", facts=CardFacts(license="mit"))
    with pytest.raises(ValueError, match=r"other options \(seed\)"):
        run(dataset, target, LAYOUTS["llava"](seed=1))
    settings = ConversationSettings(pretraining=True)
    with pytest.raises(ValueError, match=r"other options \(conversations\)"):
        run(dataset, target, LAYOUTS["llava"](settings=settings))
    assert contents(target) == before


def test_a_dataset_elsewhere_is_the_same(dataset, tmp_path):
    run(dataset, tmp_path / "out", "hf")
    shutil.copytree(dataset, tmp_path / "moved")
    assert run(str(tmp_path / "moved"), tmp_path / "out", "hf").reused == 3


def test_two_exports_at_once(dataset, tmp_path):
    target = str(tmp_path / "out")
    with (
        Lease.acquire(target, run_id="other", command="anisoalign export"),
        pytest.raises(LeaseHeldError, match="is being written by `anisoalign export`"),
    ):
        run(dataset, target, "hf")
    assert run(dataset, target, "hf").parts == 3
    check_sums(tmp_path / "out")


def test_a_target_inside_the_dataset_is_refused(own):
    for target in (own, own / "data" / "out"):
        with pytest.raises(ValueError, match="is inside the dataset"):
            run(str(own), target, "hf")


def test_links_in_the_target_are_not_followed(dataset, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link"):
        run(dataset, tmp_path / "out", "hf")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_shards_without_rows_make_no_part(name, tmp_path):
    columns = captions(30)
    columns["text"][10:20] = [" "] * 10
    root = str(tmp_path / "dataset")
    manifest = write_substitutes(root, tmp_path / "source", columns)
    assert (manifest.units, manifest.rows) == (3, 20)
    report = run(root, tmp_path / "out", name)
    assert (report.parts, report.rows) == (2, 20)
    check_sums(tmp_path / "out")


def test_a_dataset_without_rows_is_refused(tmp_path):
    columns = captions(5)
    columns["text"] = [""] * 5
    write_substitutes(str(tmp_path / "dataset"), tmp_path / "source", columns)
    with pytest.raises(ValueError, match="has no rows to export"):
        run(str(tmp_path / "dataset"), tmp_path / "out", "hf")


@pytest.mark.parametrize("name", FORMATS)
def test_rows_without_text(name, tmp_path):
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", {"id": captions()["id"]}, null_text=True)
    if name in ("revision", "llava"):
        with pytest.raises(ValueError, match=f"has no text, and --format {name} needs a caption"):
            run(root, tmp_path / "out", name)
        assert not (tmp_path / "out" / "samples.json").exists()
    else:
        run(root, tmp_path / "out", name)
        check_sums(tmp_path / "out")


def test_a_killed_worker_is_told(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_write_part", _die)
    with pytest.raises(ValueError, match="a process that wrote parts was killed"):
        run(dataset, tmp_path / "out", "hf", workers=2)


def _die(*_: object) -> None:
    os._exit(9)


def test_shards_of_other_columns_are_refused(tmp_path):
    root = str(tmp_path / "dataset")
    first = write_substitutes(root, tmp_path / "a")
    more = {**captions(10), "source": ["web"] * 10}
    more["id"] = [f"other-{row}" for row in range(10)]
    second = write_substitutes(root, tmp_path / "b", more)
    from pipeline.storage import commit

    commit(
        root,
        kind="substitutes",
        dimension=8,
        dtype="float16",
        receipts=[*first.receipts, *second.receipts],
        source={},
        config={},
        encoder={},
    )
    with pytest.raises(ValueError, match="has other columns than the first one"):
        run(root, tmp_path / "out", "hf")


@pytest.mark.parametrize("name", CONVERSATIONAL_FORMATS)
def test_templates_about_images_are_for_images(name, tmp_path):
    """Of other modalities nobody is asked what an image shows: other templates, or none."""
    root, names = str(tmp_path / "dataset"), Names(source="audio", target="depth")
    write_substitutes(root, tmp_path / "in", names=names)
    with pytest.raises(ValueError, match=r"stand in for depth, .*set conversations\.templates"):
        run(root, tmp_path / "images", name)
    own = ConversationSettings(templates=(Exchange(human="How far is it?", gpt="{text}"),))
    run(root, tmp_path / "own", LAYOUTS[name](settings=own))
    check_sums(tmp_path / "own")
    assert "Substitute depth embeddings" in (tmp_path / "own" / "README.md").read_text()


def test_rows_without_a_caption_need_no_templates(tmp_path):
    root, names = str(tmp_path / "dataset"), Names(source="audio", target="depth")
    columns = {"id": ["a", "b"]}
    write_substitutes(root, tmp_path / "in", columns, null_text=True, names=names)
    assert run(root, tmp_path / "out", "webdataset").rows == 2
