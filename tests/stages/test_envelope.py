"""Units that fail: named, passed on, given up; and errors that are the whole run's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray import cloudpickle

from pipeline.align import load_aligner
from pipeline.schema import ENVELOPE
from pipeline.stages.embed import Embed, as_stored
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.stages.envelope import DeviceLostError, Envelope, Failure, UnitStage
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage import Corpus, Unit, embeddings_of, plan, read_shard
from pipeline.storage.locations import UnwritableError
from pipeline.storage.receipts import Receipt


@dataclass
class Numbered:
    """Attempts that begin at a number; remembers what ended."""

    limit: int
    number: int = 1
    ended: list[str] = field(default_factory=list)

    def begin(self, stage: str, unit_key: str) -> int:
        return self.number

    def end(self, stage: str, unit_key: str) -> None:
        self.ended.append(stage)


@dataclass
class Raising(UnitStage):
    """A stage that raises."""

    error: BaseException
    attempts: Numbered

    stage = "raising"

    def process(self, table: pa.Table, envelope: Envelope) -> pa.Table:
        raise self.error


def signed_error() -> Exception:
    """Return an error that was raised from one whose URL is signed."""
    error = RuntimeError("cannot read")
    error.__cause__ = OSError("GET https://store/key?X-Amz-Signature=secret failed")
    return error


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    (unit,) = plan(Corpus(path=str(tmp_path / "captions.txt"), modality="text"), 10).units
    return unit


def block(unit: Unit) -> pa.Table:
    return Envelope(unit).seal(pa.table({"row": [0, 1]}))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("cannot read\nthis"), "cannot read this"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("s3://me:secret@store/x broke"), "RuntimeError: s3://***@store/x broke"),
        (AssertionError("a bug"), "AssertionError: a bug"),
    ],
)
def test_what_a_stage_raises_is_the_units_failure(unit: Unit, error: Exception, reason: str):
    attempts = Numbered(limit=3)
    failed = Raising(error, attempts)(block(unit))
    table, envelope = Envelope.open(failed)
    assert (table.num_rows, table.num_columns) == (1, 0) or table.column_names == []
    assert envelope.unit == unit
    assert envelope.failure == Failure("raising", reason)
    assert attempts.ended == ["raising"]


def test_what_a_worker_logs_has_no_credentials(unit: Unit, caplog: pytest.LogCaptureFixture):
    Raising(signed_error(), Numbered(limit=3))(block(unit))
    assert "Traceback" in caplog.text
    assert "https://store/key?***" in caplog.text
    assert "secret" not in caplog.text


def test_a_failed_unit_is_passed_on_untouched(unit: Unit, tmp_path: Path):
    failed = Raising(ValueError("first"), Numbered(limit=3))(block(unit))
    attempts = Numbered(limit=3)
    again = Raising(ValueError("second"), attempts)(failed)
    assert again == failed
    written = WriteShard(str(tmp_path / "out"), "f", "float16")(again)
    assert written.column("receipt").to_pylist() == [None]
    assert written.column("unit").to_pylist() == [unit.key]
    assert json.loads(written.column("failure")[0].as_py())["reason"] == "first"
    assert not (tmp_path / "out").exists()
    assert attempts.ended == []


def test_a_unit_that_kills_its_worker_is_given_up(unit: Unit):
    attempts = Numbered(limit=3, number=4)
    stage = Raising(AssertionError("the rows are not touched"), attempts)
    failure = Envelope.open(stage(block(unit)))[1].failure
    assert failure == Failure("raising", "killed its worker 3 times", attempts=3)


def test_what_every_unit_would_raise_is_told_apart(unit: Unit):
    failed = Raising(UnwritableError("the disk is full"), Numbered(limit=3))(block(unit))
    failure = Envelope.open(failed)[1].failure
    assert failure == Failure("raising", "the disk is full", unwritable=True)


def test_what_ends_the_process_is_raised(unit: Unit):
    with pytest.raises(KeyboardInterrupt):
        Raising(KeyboardInterrupt(), Numbered(limit=3))(block(unit))
    attempts = Numbered(limit=3)
    with pytest.raises(DeviceLostError):
        Raising(DeviceLostError("gone"), attempts)(block(unit))
    assert attempts.ended == []  # the process is about to die of it: an attempt that never ended


def test_a_file_that_vanished_fails_its_unit_alone(unit: Unit, tmp_path: Path):
    corpus = Corpus(path=str(tmp_path / "captions.txt"), modality="text")
    read = cloudpickle.loads(cloudpickle.dumps(ReadUnit(corpus)))
    (tmp_path / "captions.txt").unlink()
    failure = Envelope.open(read(pa.table({ENVELOPE: [unit.to_json()]})))[1].failure
    assert failure is not None
    assert failure.stage == "read"
    assert str(tmp_path / "captions.txt") in failure.reason


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("method", ["anisoalign", "c3"])
def test_substitutes_are_the_same_bytes_straight_or_through_a_stored_dataset(
    tmp_path: Path, dtype: str, method: str
):
    """Also where ids are not in order and a row is rejected by the encoder."""
    from pipeline.align import create_aligner
    from tests.align.clouds import SMALL

    lines = [{"id": f"c{row * 7 % 20:02d}", "text": f"a red circle {row}"} for row in range(20)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = Corpus(path=str(tmp_path / "c.jsonl"), modality="text")
    (unit,) = plan(corpus, 100).units
    row = pa.table({ENVELOPE: [unit.to_json()]})
    options = EncoderOptions(model="demo")
    generator = torch.Generator().manual_seed(0)
    clouds = [
        torch.nn.functional.normalize(torch.randn(300, 128, generator=generator) + mean, dim=1)
        for mean in (0.2, -0.1)
    ]
    create_aligner(method, SMALL).fit(*clouds).save(str(tmp_path / "a"), {})
    aligner = str(tmp_path / "a")

    encoded = Embed(modality="text", encoder=options)(ReadUnit(corpus)(row))
    stored = WriteShard(str(tmp_path / "stored"), "f", dtype)(encoded)
    receipt = Receipt.from_json(stored.column("receipt")[0].as_py())
    shard = read_shard(str(tmp_path / "stored"), receipt)
    values = embeddings_of(shard)
    expected = load_aligner(aligner).transform(
        torch.from_numpy(as_stored(values, dtype)), shard.column("id").to_pylist()
    )

    straight = Embed(modality="text", encoder=options, aligner=aligner, embeddings_dtype=dtype)
    fused = WriteShard(str(tmp_path / "fused"), "f", "float32")(straight(ReadUnit(corpus)(row)))
    receipt = Receipt.from_json(fused.column("receipt")[0].as_py())
    found = read_shard(str(tmp_path / "fused"), receipt)
    assert found.column("id") == shard.column("id")
    assert embeddings_of(found).tobytes() == expected.numpy().tobytes()


def test_little_memory_halves_the_rows_that_are_corrected(tmp_path: Path, clouds: Path):
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    from pipeline.align import create_aligner
    from tests.align.clouds import SMALL
    from tests.align.clouds import clouds as tensor_clouds

    create_aligner("anisoalign", SMALL).fit(*tensor_clouds()).save(str(tmp_path / "a"), {})
    embed = Embed(modality="text", aligner=str(tmp_path / "a"))
    unit = plan(corpus, 50).units[0]
    read = ReadUnit(corpus, 12)(pa.table({ENVELOPE: [unit.to_json()]}))
    expected = embeddings_of(embed(read))
    assert embed._aligner is not None
    transform, sizes = embed._aligner.transform, []

    def short_of_memory(text: torch.Tensor, ids: list[str]) -> torch.Tensor:
        sizes.append(len(text))
        if len(text) > 13:
            raise torch.OutOfMemoryError("pretended")
        return transform(text, ids)

    embed._aligner.transform = short_of_memory  # type: ignore[method-assign]
    np.testing.assert_allclose(embeddings_of(embed(read)), expected, atol=1e-6)
    assert sizes == [50, 25, 12, 13, 25, 12, 13]
