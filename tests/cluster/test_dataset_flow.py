"""The flow that writes a dataset: what it skips, refuses, waits for, and gives back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle

import tests.cluster.test_dataset_flow as this_module
from pipeline.align import create_aligner
from pipeline.cluster import dataset_flow, writing
from pipeline.cluster.dataset_flow import write_dataset
from pipeline.cluster.encode import encode_side
from pipeline.cluster.synthesize import synthesize
from pipeline.cluster.workers import EmbedWorker
from pipeline.report.console import Reporter
from pipeline.storage import embeddings_of, open_manifest
from pipeline.storage.lease import Lease, LeaseHeldError, LeaseLostError
from tests.cluster.captions import (
    ROWS,
    UNITS,
    WIDTH,
    Recorder,
    correct,
    correcting,
    shards,
    write_captions,
    write_corpus,
)
from tests.cluster.samples import (
    dataset_rows,
    execute,
    small_config,
    unit_cloud,
)

cloudpickle.register_pickle_by_value(this_module)
"""Workers need not be able to import the tests."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


class ToldEmbed(EmbedWorker):
    """Loads no model without being told which to expect."""

    def __init__(self, **given: Any) -> None:
        models = [name for name in ("encoder", "aligner") if name in given]
        assert models
        assert all(given.get(f"{name}_fingerprint") for name in models)
        super().__init__(**given)


@pytest.mark.usefixtures("local_ray")
class TestFlow:
    def test_an_unchanged_corpus_is_not_looked_at(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        config = correcting(corpus, rejects={"check_ids": True})
        first = correct(config)
        assert (first.added_units, first.removed_units, first.unchanged) == (UNITS, 0, False)
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.cluster.dataset_flow.find_duplicates", None)
            patch.setattr("pipeline.cluster.dataset_flow.finished", None)
            patch.setattr("pipeline.cluster.dataset_flow.UnitFlow", None)
            patch.setattr("pipeline.cluster.dataset_flow.writing", None)
            again = correct(config)
            # Nobody looks for what was looked for and not found, where nobody asks for it now.
            assert correct(correcting(corpus)).unchanged
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

    def test_ids_are_checked_once_that_is_asked_for(self, corpus: Path):
        write_captions(corpus, first="t39")  # the id of the last row of the last file
        lax = {"max_share": 0.1}
        before = correct(correcting(corpus, rejects=lax))
        after = correct(correcting(corpus, rejects={**lax, "check_ids": True}))
        assert (before.rows, after.rows, after.rejected) == (ROWS, ROWS - 1, 1)
        # And not any more: the lost row comes back.
        assert correct(correcting(corpus, rejects=lax)).rows == ROWS

    def test_files_that_swap_names_swap_who_keeps_an_id(self, corpus: Path, tmp_path: Path):
        write_captions(corpus, first="t39")
        config = correcting(corpus, rejects={"check_ids": True, "max_share": 0.1})

        def text_of_the_id() -> str:
            _, table = dataset_rows(tmp_path / "run/dataset")
            (text,) = (row["text"] for row in table.to_pylist() if row["id"] == "t39")
            return str(text)

        first = correct(config)
        assert (first.rows, text_of_the_id()) == (ROWS - 1, "a red circle 0")
        assert correct(config).unchanged
        (corpus / "0.parquet").rename(corpus / "x")
        (corpus / "3.parquet").rename(corpus / "0.parquet")
        (corpus / "x").rename(corpus / "3.parquet")
        swapped = correct(config)
        assert (swapped.unchanged, swapped.rows) == (False, ROWS - 1)
        assert text_of_the_id() == "a red circle 39"

    def test_a_run_whose_lease_is_lost_stops_writing(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def lost(lease: Lease) -> None:
            raise LeaseLostError("another run took it over")

        monkeypatch.setattr(Lease, "check", lost)
        times = iter(range(0, 1000, 20))
        fake = SimpleNamespace(monotonic=lambda: next(times), perf_counter=time.perf_counter)
        monkeypatch.setattr(dataset_flow, "time", fake)
        recorder = Recorder()
        with pytest.raises(LeaseLostError, match="took it over"):
            correct(correcting(corpus), recorder)
        # By that clock 20 seconds go by with a unit: it is asked for after the second.
        assert len(recorder.named("unit_written")) == 2
        assert not (tmp_path / "run/dataset/versions").exists()

    def test_a_run_waits_for_the_lease_on_a_dataset_too(
        self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        root = tmp_path / "run/dataset"
        root.mkdir(parents=True)
        with (
            Lease.acquire(str(root), run_id="the-first", command="nightly"),
            pytest.raises(LeaseHeldError, match="the-first"),
        ):
            execute(correcting(corpus, lease={"wait_s": 1}), synthesize, Reporter())
        assert "waiting up to 1 s for the lease" in capsys.readouterr().err

    def test_an_actor_that_finds_another_aligner_ends_the_run(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def late(*given: Any) -> Any:
            clouds = [torch.from_numpy(unit_cloud(50, WIDTH, mean, 5)) for mean in (0.4, -0.3)]
            create_aligner("centroid").fit(*clouds).save(str(tmp_path / "aligner"), {})
            return write_dataset(*given)

        monkeypatch.setattr("pipeline.cluster.synthesize.write_dataset", late)
        with pytest.raises(ValueError) as failed:
            correct(correcting(corpus))
        assert str(failed.value) == (
            f"the aligner at {tmp_path}/aligner was changed during the run; start it again"
        )
        assert not shards(tmp_path)

    def test_rows_that_stand_nowhere_are_not_said_to_stand_in_quarantine(
        self, corpus: Path, tmp_path: Path
    ):
        (corpus / "copy.parquet").write_bytes((corpus / "0.parquet").read_bytes())
        with pytest.raises(ValueError, match=r"10 of 50 rows .*\(10 duplicate_id\)") as failed:
            correct(correcting(corpus))
        assert "quarantine" not in str(failed.value)
        assert "10 are in slices that occur more than once" in str(failed.value)
        write_captions(corpus, first="")
        (corpus / "copy.parquet").write_bytes((corpus / "0.parquet").read_bytes())
        with pytest.raises(ValueError) as failed:
            correct(correcting(corpus))
        assert f"rejected rows stand in {tmp_path}/run/dataset/quarantine; 10 are" in str(
            failed.value
        )

    def test_a_stricter_limit_holds_for_an_unchanged_dataset(self, corpus: Path, tmp_path: Path):
        write_captions(corpus, first="")
        correct(correcting(corpus, rejects={"max_share": 0.5}))
        with pytest.raises(ValueError, match=r"1 of 40 rows .* cannot be used \(1 missing_id\)"):
            correct(correcting(corpus))

    def test_straight_or_through_stored_embeddings_gives_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(writing, "EmbedWorker", ToldEmbed)
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
