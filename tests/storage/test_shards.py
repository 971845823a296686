import dataclasses
import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.schema import QUARANTINE_SCHEMA
from pipeline.storage import (
    Corpus,
    embeddings_of,
    finished,
    locations,
    plan,
    read_shard,
    read_unit,
    shard_name,
    whole,
    write_unit,
)
from pipeline.storage.shards import is_in_order, missing_files
from tests.storage.samples import (
    encoded,
    text_corpus,
    unit_norm,
    vectors,
    write_dataset,
    write_jsonl,
    write_parquet,
)


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "out")


@pytest.fixture
def corpus(tmp_path):
    records = [
        {"id": "c", "text": "three", "more": {"a": 3}},
        {"id": "a", "text": "one", "more": None},
        {"id": "b", "text": " "},
        {"id": "a", "text": "again"},
        {"id": "é", "text": "four"},
    ]
    return text_corpus(write_jsonl(tmp_path / "a.jsonl", records), passed_through=("more",))


def write(root, corpus, unit, fingerprint="f", dtype="float16", **fields):
    return write_unit(
        root,
        unit=unit,
        fingerprint=fingerprint,
        table=encoded(read_unit(corpus, unit)),
        dtype=dtype,
        metadata={"encoder": "toy"},
        seconds={"encode": 1.23456},
        **fields,
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_good_rows_by_id_and_the_rest_in_quarantine(root, corpus, dtype):
    (unit,) = plan(corpus, 10).units
    receipt = write(root, corpus, unit, dtype=dtype, truncated=2)
    table = read_shard(root, receipt)
    assert table.column_names == ["id", "text", "embedding", "more"]
    assert table.column("id").to_pylist() == ["a", "c", "é"]
    assert table.column("text").to_pylist() == ["one", "three", "four"]
    assert table.column("more").to_pylist() == [None, {"a": 3}, None]
    assert str(table.schema.field("embedding").type.value_type) in {"halffloat", "float"}
    np.testing.assert_allclose(embeddings_of(table), unit_norm(5)[[1, 0, 4]], atol=1e-3)
    notes = table.schema.metadata
    assert notes[b"encoder"] == b"toy"
    assert notes[b"anisoalign.unit"] == unit.key.encode()
    assert notes[b"anisoalign.schema_version"] == b"1"
    assert (receipt.rows, receipt.quarantine_rows, receipt.truncated) == (3, 2, 2)
    assert receipt.quarantined == {"duplicate_id": 1, "empty": 1}
    assert receipt.seconds == {"encode": 1.235}
    assert receipt.source == {"path": corpus.path, "start": 0, "stop": 5}
    quarantine = pq.read_table(
        pa.BufferReader(locations.read_bytes(locations.join(root, receipt.quarantine_path)))
    )
    assert quarantine.schema.equals(QUARANTINE_SCHEMA)
    assert quarantine.drop(["content"]).to_pylist() == [
        {"row": 2, "id": "b", "reason": "empty"},
        {"row": 3, "id": "a", "reason": "duplicate_id"},
    ]


def test_bytes_depend_on_content_only(tmp_path, corpus):
    (unit,) = plan(corpus, 10).units
    first = write(str(tmp_path / "1"), corpus, unit)
    second = write(str(tmp_path / "2"), corpus, unit)
    assert first == second
    one = (tmp_path / "1" / first.path).read_bytes()
    assert one == (tmp_path / "2" / second.path).read_bytes()
    assert len(one) == first.bytes


@pytest.mark.parametrize("modality", ["text", "image"])
def test_rows_that_a_later_stage_rejects_keep_their_content(root, tmp_path, modality):
    content = ["x" * 70_000, "y"] if modality == "text" else [b"x" * 70_000, b"y"]
    path = write_parquet(tmp_path / "b.parquet", {"id": ["b", "a"], modality: content})
    corpus = Corpus(path=path, modality=modality)
    (unit,) = plan(corpus, 10).units
    table = encoded(read_unit(corpus, unit))
    table = table.set_column(
        table.column_names.index("reject"), "reject", pa.array(["undecodable_image", None])
    )
    receipt = write_unit(
        root, unit=unit, fingerprint="f", table=table, dtype="float16", metadata={}, seconds={}
    )
    data = locations.read_bytes(locations.join(root, receipt.quarantine_path))
    (row,) = pq.read_table(pa.BufferReader(data)).to_pylist()
    assert row == {
        "row": 0,
        "id": "b",
        "content": b"x" * 65536,
        "reason": "undecodable_image",
    }


def test_no_quarantine_without_rejects_and_no_text_without_text(root, tmp_path):
    np.save(tmp_path / "a.npy", unit_norm(3))
    corpus = Corpus(path=str(tmp_path / "a.npy"), modality="image")
    (unit,) = plan(corpus, 10).units
    receipt = write_unit(
        root,
        unit=unit,
        fingerprint="f",
        table=read_unit(corpus, unit),
        dtype="float32",
        metadata={},
        seconds={},
    )
    assert receipt.quarantine_path is None
    assert receipt.quarantined == {}
    assert read_shard(root, receipt, ["text"]).column("text").to_pylist() == [None] * 3
    with pytest.raises(ValueError, match="no column caption"):
        read_shard(root, receipt, ["caption"])


def test_a_unit_without_a_good_row(root, tmp_path):
    (tmp_path / "a.txt").write_text(" \n \n")
    corpus = text_corpus(tmp_path / "a.txt")
    (unit,) = plan(corpus, 10).units
    receipt = write(root, corpus, unit)
    assert (receipt.rows, receipt.quarantined) == (0, {"empty": 2})
    table = read_shard(root, receipt)
    assert embeddings_of(table).shape == (0, 8)
    assert list(finished(root, [unit], "f")) == [unit.key]


def test_embeddings_of_float32_is_no_copy():
    table = pa.table({"embedding": vectors(unit_norm(4))})
    buffer = table.column("embedding").chunk(0).flatten().buffers()[1]
    assert embeddings_of(table).ctypes.data == buffer.address
    assert embeddings_of(table.slice(2)).tolist() == unit_norm(4)[2:].tolist()
    chunked = pa.concat_tables([table, table])
    assert embeddings_of(chunked).shape == (8, 8)
    half = pa.table({"embedding": vectors(unit_norm(4), "float16")})
    assert embeddings_of(half).dtype == np.float32


def test_finished_is_shard_and_receipt_of_this_fingerprint(root, corpus):
    units = plan(corpus, 2).units
    receipts = {unit.key: write(root, corpus, unit) for unit in units}
    assert finished(root, units, "f") == receipts
    assert finished(root, units, "other") == {}
    assert finished(locations.join(root, "none"), units, "f") == {}
    shards = [locations.join(root, receipts[unit.key].path) for unit in units]
    locations.write_bytes(shards[0], b"short")
    assert list(finished(root, units, "f")) == [unit.key for unit in units[1:]]
    locations.remove(shards[1])
    assert list(finished(root, units, "f")) == [units[2].key]
    name = shard_name(units[2].key, "f")
    locations.write_bytes(locations.join(root, "receipts", f"{name}.json"), b"{")
    assert finished(root, units, "f") == {}


def test_finished_on_any_store(place, corpus):
    units = plan(corpus, 2).units
    receipts = {unit.key: write(place, corpus, unit) for unit in units}
    assert finished(place, units, "f") == receipts
    assert whole(place, list(receipts.values()))
    locations.remove(locations.join(place, receipts[units[0].key].path))
    assert list(finished(place, units, "f")) == [unit.key for unit in units[1:]]
    assert not whole(place, list(receipts.values()))
    files = {path: size for one in receipts.values() for path, size in one.files.items()}
    assert missing_files(place, files) == [receipts[units[0].key].path]


def test_what_is_known_is_not_read_again(root, corpus, monkeypatch):
    units = plan(corpus, 2).units
    receipts = {unit.key: write(root, corpus, unit) for unit in units}
    read = []
    real = locations.read_bytes
    monkeypatch.setattr(locations, "read_bytes", lambda url: read.append(url) or real(url))
    known = [receipts[unit.key] for unit in units[:2]]
    assert finished(root, units, "f", known) == receipts
    assert [url.rsplit("/", 1)[-1] for url in read] == [f"{shard_name(units[2].key, 'f')}.json"]
    assert finished(root, units, "other", known) == {}
    # A known receipt needs no receipt file, but its shard.
    for unit in units[:2]:
        name = f"{shard_name(unit.key, 'f')}.json"
        locations.remove(locations.join(root, "receipts", name))
    assert finished(root, units, "f", known) == receipts
    locations.remove(locations.join(root, receipts[units[0].key].path))
    assert list(finished(root, units, "f", known)) == [unit.key for unit in units[1:]]


def test_a_known_receipt_that_does_not_fit_yields_to_the_stored_one(root, corpus):
    (unit,) = plan(corpus, 10).units
    receipt = write(root, corpus, unit)
    old = dataclasses.replace(receipt, bytes=receipt.bytes + 1)
    assert finished(root, [unit], "f", [old]) == {unit.key: receipt}


@pytest.mark.parametrize(
    "forged",
    [
        {"rows": 2**29},
        {"rows": 4},
        {"rows": 2},
        {"quarantine_rows": 2**29},
        {"rows": 5, "quarantine_rows": 0},
        {"quarantined": {"empty": 1}},
        {"quarantine_path": None},
        {"rows": -1},
        {"bytes": -1},
        {"seconds": {"encode": float("nan")}},
    ],
)
def test_a_forged_receipt_is_not_finished(root, corpus, forged):
    (unit,) = plan(corpus, 10).units
    values = {**dataclasses.asdict(write(root, corpus, unit)), **forged}
    where = locations.join(root, "receipts", f"{shard_name(unit.key, 'f')}.json")
    locations.write_bytes(where, json.dumps(values).encode())
    assert finished(root, [unit], "f") == {}


def test_a_receipt_names_what_its_shard_was_first_made_from(tmp_path):
    root = str(tmp_path / "embeddings")
    _, receipts = write_dataset(root, tmp_path / "in")
    stored = Corpus(path=root, modality="text")
    for unit in plan(stored, 10).units:
        again = write_unit(
            str(tmp_path / "out"),
            unit=unit,
            fingerprint="f",
            table=read_unit(stored, unit),
            dtype="float16",
            metadata={},
            seconds={},
        )
        assert again.source == next(one.source for one in receipts if unit.path.endswith(one.path))


def test_a_lost_quarantine_shard_is_not_finished(root, corpus):
    (unit,) = plan(corpus, 10).units
    receipt = write(root, corpus, unit)
    locations.remove(locations.join(root, receipt.quarantine_path))
    assert finished(root, [unit], "f") == {}


def test_a_receipt_copied_to_another_name_is_not_finished(root, corpus):
    first, second, _ = plan(corpus, 2).units
    receipt = write(root, corpus, first)
    other = write(root, corpus, second)
    forged = dataclasses.replace(receipt, path=other.path)
    where = locations.join(root, "receipts", f"{shard_name(second.key, 'f')}.json")
    locations.write_bytes(where, forged.to_json().encode())
    assert list(finished(root, [first, second], "f")) == [first.key]


def test_a_crash_between_shard_and_receipt_is_not_finished(tmp_path, corpus, monkeypatch):
    root = str(tmp_path / "out")
    (unit,) = plan(corpus, 10).units
    whole = locations.write_bytes

    def crash(url, data):
        if "receipts" in url:
            raise ValueError("crash")
        whole(url, data)

    monkeypatch.setattr(locations, "write_bytes", crash)
    with pytest.raises(ValueError, match="crash"):
        write(root, corpus, unit)
    monkeypatch.undo()
    assert finished(root, [unit], "f") == {}
    write(root, corpus, unit)
    assert list(finished(root, [unit], "f")) == [unit.key]


def test_shards_that_cannot_be_read(tmp_path):
    _, receipts = write_dataset(str(tmp_path / "out"), tmp_path / "in")
    path = tmp_path / "out" / receipts[0].path
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match=f"cannot read the shard .*{path.name}"):
        read_shard(str(tmp_path / "out"), receipts[0])
    path.unlink()
    with pytest.raises(ValueError, match="cannot read the shard"):
        read_shard(str(tmp_path / "out"), receipts[0])
    outside = dataclasses.replace(receipts[0], path="../x.parquet")
    with pytest.raises(ValueError, match="refused"):
        read_shard(str(tmp_path / "out"), outside)


def test_names_are_hex_and_depend_on_both():
    assert len(shard_name("unit", "f")) == 32
    assert int(shard_name("unit", "f"), 16)
    assert len({shard_name(u, f) for u in ("a", "b") for f in ("x", "y")}) == 4


def test_passed_through_image_names(tmp_path, root):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["x"], "image": ["x.jpg"]})
    corpus = text_corpus(path, passed_through=("image",))
    (unit,) = plan(corpus, 10).units
    receipt = write(root, corpus, unit)
    assert read_shard(root, receipt).column("image").to_pylist() == ["x.jpg"]


def test_rows_already_in_order_give_the_same_bytes(tmp_path):
    values = vectors(unit_norm(6, 8, 1))
    columns = {"id": list("fbdace"), "text": list("123456"), "embedding": values}
    path = write_parquet(tmp_path / "a.parquet", columns)
    corpus = text_corpus(path, embedding_column="embedding")
    (unit,) = plan(corpus, 10).units
    table = read_unit(corpus, unit)
    ordered = table.take(pc.sort_indices(table.column("id")))
    written = [
        write_unit(
            str(tmp_path / name),
            unit=unit,
            fingerprint="f",
            table=one,
            dtype="float16",
            metadata={},
            seconds={},
        )
        for name, one in (("1", table), ("2", ordered))
    ]
    assert written[0].sha256 == written[1].sha256


def test_places_in_order():
    assert is_in_order(pa.array([0, 1, 2]))
    assert is_in_order(pa.array([], pa.uint64()))
    assert not is_in_order(pa.array([0, 2, 1]))
