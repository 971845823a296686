"""The id index in the flow: built before a version is published, kept where it fits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

import tests.cluster.test_indexing as this_module
from pipeline.cluster.encode import encode_side
from pipeline.cluster.indexing import index_dataset
from pipeline.cluster.session import ray_session
from pipeline.readers import SubstituteLookup
from pipeline.report.console import Reporter
from pipeline.storage import Manifest, embeddings_of, open_manifest, verify, versions
from pipeline.storage.manifest import publish as make_current
from tests.cluster.captions import (
    ROWS,
    UNITS,
    WIDTH,
    Recorder,
    correct,
    correcting,
    write_corpus,
)
from tests.cluster.samples import dataset_rows, execute, small_config, unit_cloud, write_embeddings
from tests.readers.samples import all_ids, embedding_of, publish, write_shard

cloudpickle.register_pickle_by_value(this_module)
"""Workers need not be able to import the tests."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def read_by_id(root: Path) -> None:
    """Check that the index finds each row of a dataset, and that all of it verifies."""
    _, table = dataset_rows(root)
    found = SubstituteLookup(root).lookup(table.column("id").to_pylist())
    assert np.array_equal(found.astype(np.float32), embeddings_of(table))
    assert verify(str(root)).problems == ()


def built(recorder: Recorder) -> list[tuple[int, int, int]]:
    return [
        (event["segments"], event["kept"], event["shards"])
        for event in recorder.named("index_built")
    ]


def without_index(root: Path) -> Manifest:
    """Make the current version what an earlier release would have published."""
    manifest = dataclasses.replace(open_manifest(str(root)), index=None)
    values = json.loads(manifest.to_json())
    del values["index"]
    path = root / "versions" / f"{manifest.version}.json"
    path.write_text(json.dumps(values))
    make_current(str(root), manifest, hashlib.sha256(path.read_bytes()).hexdigest(), lambda: None)
    for segment in (root / "index").iterdir():
        segment.unlink()
    return open_manifest(str(root))


@pytest.mark.usefixtures("local_ray")
class TestNights:
    def test_an_unchanged_night_reads_nothing_and_a_new_one_its_own(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        root = tmp_path / "run/dataset"
        recorder = Recorder()
        correct(correcting(corpus), recorder)
        assert built(recorder) == [(1, 0, UNITS)]
        (first,) = open_manifest(str(root)).index or ()
        read_by_id(root)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.cluster.dataset_flow.index_dataset", None)
            assert correct(correcting(corpus)).unchanged
        monkeypatch.setattr("pipeline.storage.id_index.SHARDS_PER_SEGMENT", UNITS)
        write_embeddings(corpus / "new.parquet", "new", unit_cloud(5, WIDTH, 0.1, 9))
        recorder = Recorder()
        correct(correcting(corpus), recorder)
        assert built(recorder) == [(1, 1, 1)]
        index = open_manifest(str(root)).index or ()
        assert first in index
        assert len(index) == 2
        read_by_id(root)

    def test_a_lost_segment_is_written_again(self, corpus: Path, tmp_path: Path):
        root = tmp_path / "run/dataset"
        correct(correcting(corpus))
        manifest = open_manifest(str(root))
        (segment,) = manifest.index or ()
        data = (root / segment.path).read_bytes()
        (root / segment.path).unlink()
        found = correct(correcting(corpus))
        assert (root / segment.path).read_bytes() == data
        assert (found.unchanged, found.version) == (True, manifest.version)
        assert verify(str(root)).problems == ()

    def test_a_version_of_an_earlier_release_gets_one(self, corpus: Path, tmp_path: Path):
        root = tmp_path / "run/dataset"
        first = correct(correcting(corpus))
        old = without_index(root)
        assert old.index is None
        with pytest.raises(ValueError, match="has no id index"):
            SubstituteLookup(root)
        shards = {path: path.stat().st_mtime_ns for path in (root / "data").iterdir()}
        found = correct(correcting(corpus))
        assert (found.unchanged, found.reused_units, found.rows) == (False, UNITS, ROWS)
        assert {path: path.stat().st_mtime_ns for path in (root / "data").iterdir()} == shards
        assert versions(str(root)) == [first.version, found.version]
        read_by_id(root)
        assert correct(correcting(corpus)).unchanged

    def test_embeddings_have_none(self, tmp_path: Path):
        captions = tmp_path / "captions.txt"
        captions.write_text("a red circle\na blue square\n")
        config = small_config(tmp_path / "run", text={"path": str(captions)})

        def encode(*given: Any) -> Any:
            return encode_side(given[0], "text", given[1])

        found = execute(config, encode)
        assert open_manifest(found.path).index is None
        assert not (Path(found.path) / "index").exists()
        assert execute(config, encode).unchanged

    def test_a_lost_lease_publishes_nothing(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def lost() -> None:
            raise ValueError("the lease is lost")

        real = index_dataset
        monkeypatch.setattr(
            "pipeline.cluster.dataset_flow.index_dataset",
            lambda *given: real(*given[:-1], lost),
        )
        with pytest.raises(ValueError, match="the lease is lost"):
            correct(correcting(corpus))
        assert not (tmp_path / "run/dataset/versions").exists()


@pytest.mark.usefixtures("local_ray")
class TestTasks:
    def test_several_segments_on_any_store(self, place: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("pipeline.storage.id_index.SHARDS_PER_SEGMENT", 2)
        receipts = [write_shard(place, shard, 10) for shard in range(5)]
        asked: list[int] = []
        with ray_session(small_config(Path("unused"))):
            index = index_dataset(
                place, receipts, None, Reporter(quiet=True), lambda: asked.append(1)
            )
        assert sorted(len(segment.shards) for segment in index) == [1, 2, 2]
        assert asked
        manifest = publish(place, receipts)
        assert set(manifest.index or ()) == set(index)
        ids = all_ids([10] * 5)
        assert np.array_equal(SubstituteLookup(place).lookup(ids), embedding_of(ids))

    def test_a_shard_that_cannot_be_read_is_named(self, tmp_path: Path):
        receipts = [write_shard(str(tmp_path), shard, 10) for shard in range(2)]
        path = tmp_path / receipts[1].path
        path.write_bytes(b"junk")
        with (
            ray_session(small_config(Path("unused"))),
            pytest.raises(ValueError, match=f"^cannot read the ids of the shard .*{path.name}"),
        ):
            index_dataset(str(tmp_path), receipts, None, Reporter(quiet=True), lambda: None)
        assert not (tmp_path / "index").exists()
