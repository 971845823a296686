"""Units that fail on real Ray: named, tried again, given up; the others are written and kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray import cloudpickle

import tests.cluster.test_faults as this_module
from pipeline.cluster import units, writing
from pipeline.cluster.attempts import AttemptCounter, counted_attempts
from pipeline.cluster.workers import EmbedWorker
from pipeline.stages.envelope import DeviceLostError, Envelope
from pipeline.stages.hash_ids import HashIds
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage import verify
from pipeline.storage.locations import UnwritableError
from tests.cluster.captions import (
    ROWS,
    UNITS,
    Recorder,
    correct,
    correcting,
    shards,
    write_captions,
    write_corpus,
)

cloudpickle.register_pickle_by_value(this_module)
"""Workers need not be able to import the tests."""


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what is slept between rounds of attempts, in the driver, without sleeping."""
    slept: list[float] = []
    monkeypatch.setattr(units, "time", SimpleNamespace(sleep=slept.append))
    return slept


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def is_third(envelope: Envelope) -> bool:
    return envelope.unit.path.endswith("/2.parquet")


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


class KillingEmbed(EmbedWorker):
    """Dies of a caption."""

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        if is_poisoned(table):
            os._exit(1)
        return super().process(table, envelope)


class LosingEmbed(EmbedWorker):
    """Loses its device by a caption, once and for all."""

    lost = False

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        self.lost |= is_poisoned(table)
        if self.lost:
            raise DeviceLostError("pretended")
        return super().process(table, envelope)


class FailingEmbed(EmbedWorker):
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
        self,
        corpus: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        pauses: list[float],
    ):
        monkeypatch.setattr(writing, "ReadUnit", FailingOften)
        recorder = Recorder()
        report = correct(correcting(corpus, units={"max_attempts": 3}), recorder)
        assert (report.rows, report.units, report.retried_units) == (ROWS, UNITS, 1)
        assert (tmp_path / "attempts").read_text() == "xxx"
        retried = recorder.named("unit_retried")
        assert [one["attempts"] for one in retried] == [1, 2]
        assert [one["added_attempts"] for one in retried] == [1, 1]
        assert retried[0]["reason"] == "the store is away"
        assert pauses == [5, 60]  # an outage does not take all attempts at once
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
            patch.setattr(writing, "EmbedWorker", FailingEmbed)
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
            ("writing.EmbedWorker", "embed", KillingEmbed),
            ("writing.EmbedWorker", "embed", LosingEmbed),
        ],
    )
    def test_a_unit_that_kills_its_worker_is_named_and_the_others_are_written(
        self,
        corpus: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        pauses: list[float],
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
        assert pauses == []
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
            with counted_attempts(3) as others:  # of another flow
                assert ray.get(begun.remote(others, "b")) == 1
            assert ray.get(begun.remote(attempts, "b")) == 2


class Vanishing(AttemptCounter):
    """A counter on a cluster whose machines are named."""

    def __init__(self, alive: Sequence[str]) -> None:
        super().__init__()
        self.machines = set(alive)

    def _alive(self) -> set[str]:
        return self.machines


def test_machines_that_vanish_are_no_fault_of_the_unit():
    counter = Vanishing(["a", "b"])
    assert counter.begin("flow", "read", "u", "a") == 1
    counter.machines.remove("a")
    assert counter.begin("flow", "read", "u", "b") == 1
    assert counter.begin("flow", "read", "u", "b") == 2
    # But not without end: a unit may take its machine along.
    machines = [f"m{number}" for number in range(30)]
    numbers = []
    for machine in machines:
        counter.machines = {machine}
        numbers.append(counter.begin("flow", "embed", "u", machine))
    assert numbers[:11] == [1] * 11
    assert numbers[11:14] == [2, 3, 4]
