"""Stages as plain callables: one Arrow block in, one block out, no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import safetensors.torch
import torch
from ray import cloudpickle

from pipeline.align import create_aligner, load_aligner
from pipeline.geometry.moments import MeanSum, Moments
from pipeline.schema import EMBEDDING, ENVELOPE, ID, REJECT, TEXT
from pipeline.stages.accumulate import (
    Accumulate,
    MeasureMapped,
    MeasureMoments,
    MeasurePolar,
    read_embeddings,
)
from pipeline.stages.embed import Embed
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.stages.envelope import Envelope
from pipeline.stages.hash_ids import HashIds
from pipeline.stages.read import ReadUnit
from pipeline.stages.write import WriteShard
from pipeline.storage import Corpus, Receipt, Unit, embeddings_of, plan, read_shard, row_hashes
from pipeline.storage.id_hashes import read_id_hashes
from tests.align.clouds import SMALL
from tests.align.clouds import clouds as tensor_clouds
from tests.encoders.conftest import picture

CAPTIONS = ["a red circle above a blue square", "", "a green star", "word " * 200, "caf"]


@pytest.fixture
def captions(tmp_path: Path) -> Corpus:
    path = tmp_path / "captions.jsonl"
    lines = [{"id": f"c{row}", "text": text} for row, text in enumerate(CAPTIONS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Corpus(path=str(path), modality="text")


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of an aligner of width 12."""
    url = str(tmp_path_factory.mktemp("aligner") / "aligner")
    create_aligner("anisoalign", SMALL).fit(*tensor_clouds()).save(url, {})
    return url


@pytest.fixture(scope="module")
def text_encoder() -> Embed:
    return Embed(modality="text", encoder=EncoderOptions(model="demo"))


def row_of(unit: Unit) -> pa.Table:
    return pa.table({ENVELOPE: [unit.to_json()]})


def only_unit(corpus: Corpus) -> Unit:
    (unit,) = plan(corpus, 1000).units
    return unit


def test_an_envelope_comes_back(captions: Corpus):
    unit = only_unit(captions)
    sent = Envelope(unit, {"read": 0.25}, truncated=3)
    with sent.timed("encode"):
        pass
    with sent.timed("encode"):
        pass
    table = pa.table({"row": range(5)})
    sealed = sent.seal(table)
    assert sealed.column_names == ["row", ENVELOPE]
    opened, envelope = Envelope.open(sealed)
    assert opened == table
    assert envelope == sent
    assert set(envelope.seconds) == {"read", "encode"}
    # It is stored once, however many rows there are, and whatever Ray slices or chains.
    assert sealed.nbytes < 5 * len(unit.to_json())
    _, again = Envelope.open(pa.concat_tables([sealed.slice(0, 2), sealed.slice(2)]))
    assert again == sent


def test_time_is_taken_of_a_stage_that_fails(captions: Corpus):
    envelope = Envelope(only_unit(captions))
    with pytest.raises(RuntimeError), envelope.timed("encode"):
        raise RuntimeError
    assert "encode" in envelope.seconds


def test_read_embed_write(captions: Corpus, text_encoder: Embed, tmp_path: Path):
    unit = only_unit(captions)
    block = ReadUnit(captions)(row_of(unit))
    assert block.num_rows == 5
    assert block.column(REJECT).to_pylist() == [None, "empty", None, None, None]
    embedded = text_encoder(block)
    assert embedded.column_names[-1] == ENVELOPE
    table, envelope = Envelope.open(embedded)
    assert envelope.truncated == 1
    assert {"read", "encode"} <= envelope.seconds.keys()
    norms = np.linalg.norm(embeddings_of(table), axis=1)
    np.testing.assert_allclose(norms, [1, 0, 1, 1, 1], atol=1e-5)

    root = str(tmp_path / "out")
    written = WriteShard(root, "f", "float32", {"note": "x"})(embedded)
    assert written.column_names == ["unit", "receipt", "failure"]
    assert written.column("failure").to_pylist() == [None]
    receipt = Receipt.from_json(written.column("receipt")[0].as_py())
    assert (receipt.rows, receipt.quarantined, receipt.truncated) == (4, {"empty": 1}, 1)
    stored = read_shard(root, receipt)
    assert stored.column(ID).to_pylist() == ["c0", "c2", "c3", "c4"]
    assert stored.column(TEXT).to_pylist() == [text for text in CAPTIONS if text]
    kept = table.filter(pc.is_null(table.column(REJECT)))
    np.testing.assert_array_equal(embeddings_of(stored), embeddings_of(kept))


def test_correcting_is_the_aligner(aligner: str, clouds: Path):
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    unit = plan(corpus, 50).units[1]
    block = ReadUnit(corpus, 12)(row_of(unit))
    table, envelope = Envelope.open(Embed(modality="text", aligner=aligner)(block))
    expected = load_aligner(aligner).transform(read_embeddings(corpus, unit, 12))
    np.testing.assert_array_equal(embeddings_of(table), expected.numpy())
    assert {"read", "correct"} == envelope.seconds.keys()


def test_only_the_models_that_are_expected_are_loaded(aligner: str, text_encoder: Embed):
    encoder = EncoderOptions(model="demo")
    fingerprint = encoder.build("text").describe()["fingerprint"]
    images = Embed(modality="image", encoder=encoder, encoder_fingerprint=fingerprint)
    assert images.stage == "embed"  # the same whichever tower is loaded
    own = load_aligner(aligner).fingerprint
    assert Embed(modality="text", aligner=aligner, aligner_fingerprint=own).stage == "embed"
    with pytest.raises(ValueError, match=r"^the encoder demo was changed during the run; start it"):
        Embed(modality="text", encoder=encoder, encoder_fingerprint="x")
    with pytest.raises(ValueError) as failed:
        Embed(modality="text", aligner=aligner, aligner_fingerprint="x")
    assert str(failed.value) == (
        f"the aligner at {aligner} was changed during the run; start it again"
    )


def test_rows_draw_by_their_ids_whatever_is_rejected_beside_them(tmp_path: Path):
    image, text = tensor_clouds(40, 10)
    fitted = create_aligner("c3", SMALL).fit(image, text)
    fitted.save(str(tmp_path / "c3"))
    ids = [f"row {row}" for row in range(10)]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    values = text.numpy().copy()
    values[[0, 4]] = np.nan
    np.save(tmp_path / "texts.npy", values)
    corpus = Corpus(
        path=str(tmp_path / "texts.npy"), modality="text", ids_path=str(tmp_path / "ids.txt")
    )
    block = ReadUnit(corpus, 12)(row_of(only_unit(corpus)))
    table, _ = Envelope.open(Embed(modality="text", aligner=str(tmp_path / "c3"))(block))
    expected = fitted.transform(text, ids).numpy()
    expected[[0, 4]] = 0
    np.testing.assert_allclose(embeddings_of(table), expected, atol=1e-6)


def test_a_block_of_rejects_passes(aligner: str, text_encoder: Embed, tmp_path: Path):
    (tmp_path / "blank.txt").write_text(" \n\n")
    corpus = Corpus(path=str(tmp_path / "blank.txt"), modality="text")
    table, _ = Envelope.open(text_encoder(ReadUnit(corpus)(row_of(only_unit(corpus)))))
    assert embeddings_of(table).shape == (2, 128)
    assert not embeddings_of(table).any()
    np.save(tmp_path / "nan.npy", np.full((3, 12), np.nan))
    corpus = Corpus(path=str(tmp_path / "nan.npy"), modality="text")
    block = ReadUnit(corpus)(row_of(only_unit(corpus)))
    table, _ = Envelope.open(Embed(modality="text", aligner=aligner)(block))
    assert not embeddings_of(table).any()


def test_undecodable_images_become_rejects(tmp_path: Path):
    import pyarrow.parquet as pq

    pictures = [picture(0), b"broken", picture(1), None, picture(2)[:100]]
    columns = {"id": list("abcde"), "image": pa.array(pictures, pa.binary())}
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    corpus = Corpus(path=str(tmp_path / "images.parquet"), modality="image")
    embed = Embed(modality="image", encoder=EncoderOptions(model="demo"))
    table, _ = Envelope.open(embed(ReadUnit(corpus)(row_of(only_unit(corpus)))))
    bad = "undecodable_image"
    assert table.column(REJECT).to_pylist() == [None, bad, None, bad, bad]
    assert table.column("content").to_pylist() == [None, b"broken", None, None, pictures[4]]
    assert "image" not in table.column_names
    norms = np.linalg.norm(embeddings_of(table), axis=1)
    np.testing.assert_allclose(norms, [1, 0, 1, 0, 0], atol=1e-5)


def test_hashes_are_of_the_good_rows(captions: Corpus, tmp_path: Path):
    unit = only_unit(captions)
    found = HashIds(captions, str(tmp_path / "out"))(row_of(unit))
    table, _ = Envelope.open(ReadUnit(captions)(row_of(unit)))
    assert found.column("unit").to_pylist() == [unit.key]
    assert found.column("hashes")[0].as_py() == row_hashes(table).tobytes()
    assert row_hashes(table).shape == (4, 2)


def group_of(units: Any) -> pa.Table:
    listed = json.dumps([unit.to_json() for unit in units])
    return pa.table({"group": [7], "units": [listed]})


@pytest.mark.parametrize("name", ["moments", "mapped", "image", "text"])
def test_a_group_gives_the_state_of_its_rows(name: str, aligner: str, clouds: Path):
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    units = plan(corpus, 50).units
    rows = torch.cat([read_embeddings(corpus, unit, 12) for unit in units])
    loaded = load_aligner(aligner)
    measure, expected = {
        "moments": lambda: (MeasureMoments(), Moments.of(rows)),
        "mapped": lambda: (MeasureMapped(loaded), MeanSum.of(loaded.map(rows))),
        "image": lambda: (MeasurePolar(loaded, "image"), loaded.image_statistics(rows)),
        "text": lambda: (MeasurePolar(loaded, "text"), loaded.text_statistics(rows)),
    }[name]()
    found = Accumulate(corpus, 12, measure)(group_of(units))
    assert found.select(["group", "rows", "rejected"]).to_pylist() == [
        {"group": 7, "rows": 120, "rejected": 0}
    ]
    state = measure.read(safetensors.torch.load(found.column("state")[0].as_py()))
    if name in ("image", "text"):
        assert state.radial.count == expected.radial.count == 120
        return
    for key, tensor in expected.tensors().items():
        torch.testing.assert_close(state.tensors()[key], tensor, atol=1e-5, rtol=1e-6)


def test_stages_travel(captions: Corpus, clouds: Path, aligner: str, tmp_path: Path):
    """Each stage does the same after cloudpickle, which is how Ray sends it."""
    unit = only_unit(captions)
    read = ReadUnit(captions)
    block = cloudpickle.loads(cloudpickle.dumps(read))(row_of(unit))
    assert block.drop_columns([ENVELOPE]) == read(row_of(unit)).drop_columns([ENVELOPE])
    hashes = HashIds(captions, str(tmp_path / "hashes"))
    assert cloudpickle.loads(cloudpickle.dumps(hashes))(row_of(unit)) == hashes(row_of(unit))
    options = EncoderOptions(model="demo", token_budget=128)
    assert cloudpickle.loads(cloudpickle.dumps(options)) == options
    assert cloudpickle.loads(cloudpickle.dumps(Embed)) is Embed
    write = WriteShard(str(tmp_path), "f", "float16", {"a": "b"})
    assert cloudpickle.loads(cloudpickle.dumps(write)) == write
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    for measure in (MeasureMapped(load_aligner(aligner)), MeasureMoments()):
        stage = Accumulate(corpus, 12, measure)
        group = group_of(plan(corpus, 50).units)
        assert cloudpickle.loads(cloudpickle.dumps(stage))(group) == stage(group)


def test_stages_do_not_load_ray():
    modules = ("accumulate", "embed", "envelope", "poison", "read", "write")
    imports = "; ".join(f"import pipeline.stages.{name}" for name in modules)
    program = f"{imports}; import sys; assert 'ray' not in sys.modules; assert EMPTY"
    done = subprocess.run(
        [sys.executable, "-c", program.replace("assert EMPTY", "print('fine')")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "fine\n", done.stderr


def test_an_embedding_column_is_replaced(aligner: str, clouds: Path):
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    unit = plan(corpus, 50).units[0]
    block = Embed(modality="text", aligner=aligner)(ReadUnit(corpus, 12)(row_of(unit)))
    assert block.column_names.count(EMBEDDING) == 1


def test_ids_are_hashed_on_the_way(clouds: Path, tmp_path: Path):
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    units = plan(corpus, 50).units
    Accumulate(corpus, 12, MeasureMoments(), str(tmp_path))(group_of(units))
    kept = read_id_hashes(str(tmp_path), corpus, units)
    for unit in units:
        found = HashIds(corpus, str(tmp_path / "other"))(row_of(unit))
        assert kept[unit.key].tobytes() == found.column("hashes")[0].as_py()
