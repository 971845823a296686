"""Units that fail on real Ray: named, tried again, given up; the others are written and kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray import cloudpickle

import tests.cluster.test_faults as this_module
from pipeline.align import create_aligner
from pipeline.cluster import writing
from pipeline.cluster.actors import EmbedActor
from pipeline.cluster.attempts import AttemptCounter, counted_attempts
from pipeline.cluster.encode import encode_side
from pipeline.cluster.synthesize import synthesize
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.stages.envelope import DeviceLostError, Envelope
from pipeline.stages.hash_ids import HashIds
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage import embeddings_of, open_manifest, verify
from pipeline.storage.locations import UnwritableError
from tests.cluster.samples import (
    dataset_rows,
    execute,
    overlaid,
    small_config,
    unit_cloud,
    write_embeddings,
)

ROWS, UNITS, WIDTH = 40, 4, 12

cloudpickle.register_pickle_by_value(this_module)
"""Workers need not be able to import the tests."""


class Recorder:
    """An observer that keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.events.append((name, dict(fields)))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.events if found == name]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a file of embeddings with captions, beside an aligner that takes no time to load."""
    clouds = [torch.from_numpy(unit_cloud(50, WIDTH, mean, 3)) for mean in (0.4, -0.3)]
    create_aligner("centroid").fit(*clouds).save(str(tmp_path / "aligner"), {})
    write_captions(tmp_path / "texts")
    return tmp_path / "texts"


def write_captions(folder: Path, odd: str = "a red circle", first: str = "t00") -> None:
    """Write a folder of four files, a unit each; the third has an odd caption."""
    ids = [first, *(f"t{row:02d}" for row in range(1, ROWS))]
    texts = [odd if row == 25 else f"a red circle {row}" for row in range(ROWS)]
    values = unit_cloud(ROWS, WIDTH, 0.1, 4)
    folder.mkdir(exist_ok=True)
    for unit, start in enumerate(range(0, ROWS, ROWS // UNITS)):
        rows = slice(start, start + ROWS // UNITS)
        path = folder / f"{unit}.parquet"
        write_embeddings(path, "t", values[rows], id=ids[rows], text=texts[rows])


def is_third(envelope: Envelope) -> bool:
    return envelope.unit.path.endswith("/2.parquet")


def correcting(corpus: Path, **sections: Any) -> RunConfig:
    folder = corpus.parent
    text = {"path": str(corpus), "embedding_column": "embedding"}
    fixed = {
        "text": text,
        "aligner": {"path": str(folder / "aligner")},
        "units": {"rows_per_shard": ROWS // UNITS, "max_attempts": 2},
        "rejects": {"check_ids": False},
    }
    return small_config(folder / "run", **overlaid(fixed, sections))


def correct(config: RunConfig, recorder: Recorder | None = None) -> Any:
    reporter = Reporter(quiet=True)
    with reporter.observed_by(recorder or Recorder()):
        return execute(config, synthesize, reporter)


def shards(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "run/dataset/data").glob("*.parquet")}


def is_poisoned(table: pa.Table) -> bool:
    return any("poison" in text for text in table.column("text").to_pylist())


class FailingOften(ReadUnit):
    """Reads the third unit on the third attempt only, which it counts in a file."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_third(envelope):
            counter = Path(self.corpus.path).parent / "attempts"
            tried = counter.read_text() if counter.exists() else ""
            counter.write_text(tried + "x")
            if len(tried) < 2:
                raise ValueError("the store is away")
        return super().process(table, envelope)


class KillingReader(ReadUnit):
    """Dies when it reads the third unit, as a segmentation fault would."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_third(envelope):
            os._exit(1)
        return super().process(table, envelope)


class KillingHashes(HashIds):
    """Dies when it hashes the ids of the third unit."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_third(envelope):
            os._exit(1)
        return super().process(table, envelope)


class KillingEmbed(EmbedActor):
    """Dies of a caption."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_poisoned(table):
            os._exit(1)
        return super().process(table, envelope)


class LosingEmbed(EmbedActor):
    """Loses its device by a caption, once and for all."""

    lost = False

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        self.lost |= is_poisoned(table)
        if self.lost:
            raise DeviceLostError("pretended")
        return super().process(table, envelope)


class FailingEmbed(EmbedActor):
    """Raises for the units that hold a caption, whatever rows are left out."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_poisoned(table):
            raise RuntimeError("a shape does\nnot fit")
        return super().process(table, envelope)


class FullDisk(WriteShard):
    """Finds the disk full when it writes the third unit."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_third(envelope):
            raise UnwritableError("cannot write there: the disk is full")
        return super().process(table, envelope)


@pytest.mark.usefixtures("local_ray")
class TestUnits:
    def test_a_unit_that_fails_twice_is_written_by_the_third_attempt(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(writing, "ReadUnit", FailingOften)
        recorder = Recorder()
        report = correct(correcting(corpus, units={"max_attempts": 3}), recorder)
        assert (report.rows, report.units, report.retried_units) == (ROWS, UNITS, 1)
        assert (tmp_path / "attempts").read_text() == "xxx"
        retried = recorder.named("unit_retried")
        assert [one["attempts"] for one in retried] == [1, 2]
        assert retried[0]["reason"] == "the store is away"
        assert len(recorder.named("unit_written")) == UNITS
        assert not recorder.named("unit_failed")
        assert verify(str(tmp_path / "run/dataset")).problems == ()

    def test_a_unit_that_goes_on_failing_is_named_and_the_others_are_kept(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        write_captions(corpus, "poison")
        config = correcting(corpus)
        recorder = Recorder()
        with monkeypatch.context() as patch:
            patch.setattr(writing, "EmbedActor", FailingEmbed)
            with pytest.raises(ValueError) as failed:
                correct(config, recorder)
        assert str(failed.value) == (
            f"1 of 4 units of {corpus} failed, with units.max_attempts=2: {corpus}/2.parquet rows "
            "0 to 10 (embed: RuntimeError: a shape does not fit); the others are written and kept: "
            "mend what is named and run it again"
        )
        (last,) = recorder.named("unit_failed")
        assert (last["attempts"], last["stage"]) == (2, "embed")
        assert len(shards(tmp_path)) == UNITS - 1
        assert not (tmp_path / "run/dataset/current.json").exists()

    @pytest.mark.parametrize(
        ("name", "stage", "killing"),
        [
            ("duplicates.HashIds", "hash ids", KillingHashes),
            ("writing.ReadUnit", "read", KillingReader),
            ("writing.EmbedActor", "embed", KillingEmbed),
            ("writing.EmbedActor", "embed", LosingEmbed),
        ],
    )
    def test_a_unit_that_kills_its_worker_is_named_and_the_others_are_written(
        self,
        corpus: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        stage: str,
        killing: type,
    ):
        write_captions(corpus, "poison")
        config = correcting(corpus, rejects={"check_ids": killing is KillingHashes})
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.cluster.{name}", killing)
            with pytest.raises(ValueError, match=r"/2.parquet rows 0 to 10") as failed:
                correct(config)
        assert f"({stage}: killed its worker 2 times)" in str(failed.value)
        before = shards(tmp_path)
        assert len(before) == UNITS - 1
        if killing is KillingEmbed:  # the same again without what killed it: the others stay
            write_captions(corpus)
            report = correct(config)
            assert (report.reused_units, report.units, report.rows) == (UNITS - 1, UNITS, ROWS)
            assert before < shards(tmp_path)

    def test_a_full_disk_ends_the_run_at_once_and_keeps_what_was_written(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        config = correcting(corpus)
        with monkeypatch.context() as patch:
            patch.setattr(writing, "WriteShard", FullDisk)
            with pytest.raises(UnwritableError, match=r"^cannot write there: the disk is full$"):
                correct(config)
        kept = len(shards(tmp_path))
        assert correct(config).reused_units == kept

    def test_attempts_are_counted_across_processes(self):
        @ray.remote(num_cpus=0.1)
        def begun(attempts: Any, key: str) -> int:
            number: int = attempts.begin("read", key)
            return number

        with counted_attempts(3) as attempts:
            numbers = [ray.get(begun.remote(attempts, "a")) for _ in range(3)]
            assert numbers == [1, 2, 3]
            assert ray.get(begun.remote(attempts, "b")) == 1
            attempts.end("read", "a")
            assert ray.get(begun.remote(attempts, "a")) == 1

    def test_an_unchanged_corpus_is_not_looked_at(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        config = correcting(corpus, rejects={"check_ids": True})
        first = correct(config)
        assert (first.added_units, first.removed_units, first.unchanged) == (UNITS, 0, False)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.cluster.dataset_flow.find_duplicate_ids", None)
            patch.setattr("pipeline.cluster.dataset_flow.finished", None)
            patch.setattr("pipeline.cluster.dataset_flow.UnitWriting", None)
            again = correct(config)
        assert again.unchanged
        assert (again.version, again.reused_units, again.rows) == (first.version, UNITS, ROWS)
        # What makes it another dataset, or leaves it without a file, is not taken for unchanged.
        next(iter((tmp_path / "run/dataset/data").glob("*.parquet"))).unlink()
        assert correct(config).reused_units == UNITS - 1
        write_captions(corpus, "a blue square")
        changed = correct(config)
        assert (changed.added_units, changed.removed_units, changed.unchanged) == (1, 1, False)
        single = correcting(corpus, output={"dtype": "float32"})
        assert correct(single).reused_units == 0

    def test_a_stricter_limit_holds_for_an_unchanged_dataset(self, corpus: Path, tmp_path: Path):
        write_captions(corpus, first="")
        correct(correcting(corpus, rejects={"max_share": 0.5}))
        with pytest.raises(ValueError, match=r"1 of 40 rows .* cannot be used \(1 missing_id\)"):
            correct(correcting(corpus))

    def test_straight_or_through_stored_embeddings_gives_the_same_bytes(self, tmp_path: Path):
        lines = [{"id": f"c{row * 7 % ROWS:02d}", "text": f"circle {row}"} for row in range(ROWS)]
        captions = tmp_path / "captions.jsonl"
        captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
        clouds = [torch.from_numpy(unit_cloud(300, 128, mean, 3)) for mean in (0.4, -0.3)]
        values = small_config(tmp_path / "unused").align
        create_aligner("anisoalign", values).fit(*clouds).save(str(tmp_path / "aligner"), {})

        def made(name: str, encode_first: bool) -> tuple[list[str], bytes]:
            config = small_config(
                tmp_path / name,
                text={"path": str(captions)},
                aligner={"path": str(tmp_path / "aligner")},
                output={"embeddings_dtype": "float16", "dtype": "float32"},
                units={"rows_per_shard": 20},
            )
            if encode_first:
                execute(config, lambda *given: encode_side(given[0], "text", given[1]))
            execute(config, synthesize)
            receipts = open_manifest(str(tmp_path / name / "dataset")).receipts
            assert all(("encode" in one.seconds) != encode_first for one in receipts)
            _, table = dataset_rows(tmp_path / name / "dataset")
            return table.column("id").to_pylist(), embeddings_of(table).tobytes()

        straight, stored = made("straight", False), made("stored", True)
        assert straight == stored
        assert len(straight[0]) == ROWS
        assert np.frombuffer(straight[1], np.float32).any()


class Vanishing(AttemptCounter):
    """A counter on a cluster whose machines are named."""

    def __init__(self, alive: Sequence[str]) -> None:
        super().__init__()
        self.machines = set(alive)

    def _alive(self) -> set[str]:
        return self.machines


def test_machines_that_vanish_are_no_fault_of_the_unit():
    counter = Vanishing(["a", "b"])
    assert counter.begin("read", "u", "a") == 1
    counter.machines.remove("a")
    assert counter.begin("read", "u", "b") == 1
    assert counter.begin("read", "u", "b") == 2
    # But not without end: a unit may take its machine along.
    machines = [f"m{number}" for number in range(30)]
    numbers = []
    for machine in machines:
        counter.machines = {machine}
        numbers.append(counter.begin("embed", "u", machine))
    assert numbers[:11] == [1] * 11
    assert numbers[11:14] == [2, 3, 4]
