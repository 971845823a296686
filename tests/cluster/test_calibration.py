"""A short measurement through Ray: the stages of the very run, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.cluster import watched
from pipeline.cluster.calibration import calibrate
from pipeline.cluster.forecasting import configuration_facts, workload
from pipeline.cluster.lifecycle import run_flow
from pipeline.cluster.run import run
from pipeline.cluster.samples import read_sample, write_sample
from pipeline.config import RunConfig
from pipeline.forecast.calibration import Calibration
from pipeline.forecast.prediction import predict
from pipeline.report.console import Reporter
from pipeline.report.timing import TimingReporter
from pipeline.storage.corpus import Corpus
from pipeline.storage.planning import plan
from pipeline.storage.reading import read_unit
from tests.cluster.conftest import CAPTIONS, World
from tests.cluster.samples import cloud_config, small_config
from tests.storage.embeddings import write_kind
from tests.tars import write_tar

QUICK = {"_SECONDS": 0.05, "_SETTLED_S": 0.0, "_UNITS_A_CPU": 2}
"""The smallest of measurements: what is looked at here is not their figures."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(watched, name, value)


def titles(config: RunConfig) -> set[str]:
    """Return the titles of a run's stages."""
    reporter = TimingReporter()
    run_flow(config, "run", run, reporter)
    return {span.title for span in reporter.spans}


def test_captions_and_pictures(local_ray: None, quick: None, world: World, tmp_path: Path):
    config = small_config(
        tmp_path / "run",
        text={"path": str(world.jsonl)},
        image={"path": str(world.images)},
        units={"rows_per_shard": 300, "images_per_shard": 48},
    )
    found = calibrate(config, {"processor": "a"}, Reporter(quiet=True))
    assert not (tmp_path / "run").exists()
    assert Calibration.from_json(found.to_json()) == found
    assert 0 <= found.disturbed <= 1

    predicted = [stage.title.partition(" (")[0] for stage in found.stages]
    assert set(predicted) == titles(config)
    assert (found.texts, found.images) == (CAPTIONS, 96)
    assert (found.cpus, found.gpus, found.dimension) == (2, 0, 128)
    assert found.machine == {"processor": "a"}
    found.check_fits(configuration_facts(config))

    costs = {stage.title: stage for stage in found.stages}
    assert costs["encoding text"].device.row > 0
    assert costs["encoding image"].rows_of == "image"
    assert costs["checking ids (image)"].rows_of == "image"
    assert costs["training prior"].step > 0
    assert costs["planning text"].busy(10, 1000, 2, 0) == {"scheduling": 0.0, "cpu": 0.0}
    assert costs["synthesizing"].device.row < costs["encoding text"].device.row
    assert found.worker_memory.fixed > 1e8
    assert found.driver_bytes > 1e8

    work = workload(config, found)
    assert (work.texts, work.images, work.cpus) == (CAPTIONS, 96, 2)
    assert (work.rows_per_unit, work.images_per_unit) == (300, 48)
    assert work.steps == {"training prior": 8, "training refiner": 6}
    forecast = predict(found, work)
    assert forecast.shards == 2 + 2 + 2
    assert forecast.seconds > 0
    written = {
        name: sum(path.stat().st_size for path in (tmp_path / "run" / name).rglob("*.parquet"))
        for name in ("embeddings/text", "embeddings/image", "dataset")
    }
    for name, size in written.items():
        # Beside the shards there are receipts, ids and a manifest.
        assert size < forecast.storage[name] < 2 * size + 100_000
    assert forecast.storage["index"] > 16 * CAPTIONS


def test_embeddings_given_and_an_aligner_given(
    local_ray: None, quick: None, clouds: Path, cloud_run: Any, tmp_path: Path
):
    output, _ = cloud_run
    config = cloud_config(clouds, tmp_path / "run", aligner={"path": str(output / "aligner")})
    found = calibrate(config, {}, Reporter(quiet=True))
    assert {stage.title.partition(" (")[0] for stage in found.stages} == titles(config)
    assert found.images == 0
    assert all(stage.rows_of == "text" for stage in found.stages)
    assert set(found.storage) == {"dataset", "index"}
    assert found.configuration["method"] == "anisoalign"
    assert not found.configuration["fits"]
    fitted = configuration_facts(cloud_config(clouds, tmp_path / "other"))
    with pytest.raises(ValueError, match="fits"):
        found.check_fits(fitted)


def test_a_corpus_that_is_not_there_leaves_nothing(local_ray: None, tmp_path: Path):
    config = small_config(
        tmp_path / "run", text={"path": "gone.txt"}, image={"path": "gone.parquet"}
    )
    with pytest.raises(ValueError, match=r"gone\.txt"):
        calibrate(config, {}, Reporter(quiet=True))
    assert list(tmp_path.iterdir()) == []


UNITS, ROWS = 8, 5


def write_corpus(folder: Path, kind: str) -> dict[str, Any]:
    """Write 16 rows in two files of a kind; returns how they are read."""
    folder.mkdir()
    values = np.eye(16, dtype=np.float32)
    for number in range(2):
        part = range(8 * number, 8 * number + 8)
        ids, texts = [f"r{row}" for row in part], [f"caption {row}" for row in part]
        extra = [{"row": row} for row in part]
        if kind == "text":
            (folder / f"{number}.txt").write_text("".join(f"{text}\n" for text in texts))
        elif kind == "jsonl":
            lines = [
                {"name": one, "said": text, "extra": more}
                for one, text, more in zip(ids, texts, extra, strict=True)
            ]
            (folder / f"{number}.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines)
            )
        elif kind == "npy":
            np.save(folder / f"{number}.npy", values[list(part)])
            (folder / f"{number}.ids.txt").write_text("\n".join(ids))
        else:
            embeddings = pa.array(list(values[list(part)]), pa.list_(pa.float32()))
            table = {"name": ids, "said": texts, "vector": embeddings, "extra": extra}
            pq.write_table(pa.table(table), folder / f"{number}.parquet")
    named = {"id_column": "name", "text_column": "said"}
    return {
        "text": {},
        "jsonl": {**named, "passed_through": ("extra",)},
        "npy": {},
        "parquet": {**named, "passed_through": ("extra",), "embedding_column": "vector"},
    }[kind]


@pytest.mark.parametrize("kind", ["text", "jsonl", "npy", "parquet"])
def test_samples_are_of_the_corpus_and_its_format(tmp_path: Path, kind: str):
    settings = write_corpus(tmp_path / "corpus", kind)
    corpus = Corpus(path=str(tmp_path / "corpus"), modality="text", **settings)
    sample = read_sample(corpus)
    assert (sample.corpus_rows, sample.files) == (16, 2)
    written = write_sample(sample, str(tmp_path / "again"), UNITS, ROWS)
    assert written.pop("sources") == {}  # of the section, not of the corpus
    again = Corpus(modality="text", **{**settings, **written})
    planned = plan(again, ROWS)
    assert (len(planned.units), planned.rows) == (UNITS, UNITS * ROWS)
    assert not planned.duplicate_units
    assert {unit.format for unit in planned.units} == {kind}
    table = pa.concat_tables(
        read_unit(again, unit, dimension=planned.dimension) for unit in planned.units
    )
    assert table.column("reject").null_count == UNITS * ROWS
    assert pc.count_distinct(table.column("id")).as_py() == UNITS * ROWS
    assert planned.has_ids == (kind != "text")
    if kind != "text":
        assert table.column("id").to_pylist()[:17] == [*(f"r{row}" for row in range(16)), "r0~1"]
    if kind in ("jsonl", "parquet"):
        assert table.column("extra").to_pylist()[:16] == [{"row": row} for row in range(16)]
        assert table.column("text").to_pylist() == [f"caption {row % 16}" for row in range(40)]
    if kind in ("npy", "parquet"):
        wanted = np.eye(16, dtype=np.float32)[np.arange(40) % 16]
        found = np.stack(table.column("embedding").to_pylist())
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pickle", "clip-retrieval"])
def test_samples_of_other_embeddings_are_written_as_parquet(tmp_path: Path, kind: str):
    values, ids = np.eye(16, dtype=np.float32), [f"r{row:02d}" for row in range(16)]
    settings = write_kind(tmp_path / "corpus", kind, values, ids)
    sample = read_sample(Corpus(path=str(tmp_path / "corpus"), modality="image", **settings))
    assert (sample.corpus_rows, sample.files, sample.rewritten) == (16, 2, True)
    written = write_sample(sample, str(tmp_path / "again"), UNITS, ROWS)
    planned = plan(Corpus(modality="image", **written), ROWS)
    assert (len(planned.units), planned.rows, planned.dimension) == (UNITS, UNITS * ROWS, 16)
    assert planned.has_ids


def write_pictures(folder: Path, kind: str, world: World) -> Path:
    """Write 16 pictures, in a folder or in two tars."""
    table = pq.read_table(world.images).slice(0, 16)
    pictures = table.column("image").to_pylist()
    if kind == "images":
        for row, picture in enumerate(pictures):
            (folder / f"part-{row % 3}").mkdir(parents=True, exist_ok=True)
            (folder / f"part-{row % 3}" / f"{row:02d}.png").write_bytes(picture)
        return folder
    for part in range(2):
        rows = range(8 * part, 8 * part + 8)
        members = [(f"{row:02d}.png", pictures[row]) for row in rows]
        members += [(f"{row:02d}.txt", world.captions[row].encode()) for row in rows]
        write_tar(folder / f"{part}.tar", sorted(members))
    return folder


@pytest.mark.parametrize("kind", ["images", "webdataset"])
def test_samples_of_pictures_are_written_as_parquet(tmp_path: Path, world: World, kind: str):
    folder = write_pictures(tmp_path / "in", kind, world)
    sample = read_sample(Corpus(path=str(folder), modality="image"))
    assert (sample.format, sample.corpus_rows, sample.rows.num_rows) == (kind, 16, 16)
    assert sample.files == (16 if kind == "images" else 2)
    written = write_sample(sample, str(tmp_path / "again"), UNITS, ROWS)
    again = Corpus(modality="image", **written)
    planned = plan(again, ROWS)
    assert (len(planned.units), planned.rows) == (UNITS, UNITS * ROWS)
    table = pa.concat_tables(read_unit(again, unit) for unit in planned.units)
    assert table.column("reject").null_count == UNITS * ROWS
    images = sample.rows.column("image").to_pylist()
    assert table.column("image").to_pylist() == [images[row % 16] for row in range(40)]


def test_a_sample_of_a_large_folder_is_its_first_files(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
):
    folder = write_pictures(tmp_path / "in", "images", world)
    monkeypatch.setattr("pipeline.cluster.samples._MOST_IMAGES", 6)
    sample = read_sample(Corpus(path=str(folder), modality="image"))
    assert (sample.rows.num_rows, sample.corpus_rows) == (6, 16)


def test_captions_of_tars_and_a_folder_of_pictures(
    local_ray: None, quick: None, world: World, tmp_path: Path
):
    """Measured from samples of both."""
    config = small_config(
        tmp_path / "run",
        text={"path": str(write_pictures(tmp_path / "tars", "webdataset", world))},
        image={"path": str(write_pictures(tmp_path / "photos", "images", world))},
        units={"rows_per_shard": 8, "images_per_shard": 8},
    )
    found = calibrate(config, {}, Reporter(quiet=True))
    assert {stage.rows_of for stage in found.stages} >= {"text", "image"}
    assert (found.texts, found.images) == (16, 16)
