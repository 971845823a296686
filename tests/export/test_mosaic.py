"""What MosaicML's `streaming` reads of an export are the rows of the dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.export import mosaic
from pipeline.export.conversations import ConversationSettings, templated
from pipeline.schema import EMBEDDING
from tests.export.samples import (
    as_json,
    captions,
    run,
    same_bits,
    source_rows,
    write_substitutes,
)


@pytest.fixture
def read() -> Iterator[object]:
    """Return what reads a folder with `StreamingDataset`; its shared memory goes at the end."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    opened = []

    def reader(folder: Path) -> list[dict[str, object]]:
        rows = StreamingDataset(
            local=str(folder), shuffle=False, batch_size=1, validate_hash="sha1"
        )
        opened.append(rows)
        return [rows[index] for index in range(len(rows))]

    yield reader
    opened.clear()
    clean_stale_shared_memory()


def test_streaming_reads_the_rows(rich_dataset, tmp_path, read):
    run(rich_dataset, tmp_path, "mds")
    wanted, found = source_rows(rich_dataset), read(tmp_path)
    assert same_bits([one.pop(EMBEDDING) for one in found], [row[EMBEDDING] for row in wanted])
    assert found == [
        {
            "id": row["id"],
            "text": row["text"],
            "conversations": templated(ConversationSettings(), 0, row["id"], row["text"]),
            **as_json(row),
        }
        for row in wanted
    ]


def test_the_files_are_what_their_own_writer_writes(dataset, tmp_path):
    from streaming import MDSWriter

    run(dataset, tmp_path / "ours", "mds")
    columns = {
        "conversations": "json",
        "embedding": "ndarray:float16:8",
        "id": "str",
        "text": "str",
    }
    rows = source_rows(dataset)
    for number in range(3):
        theirs = str(tmp_path / f"theirs{number}")
        with MDSWriter(out=theirs, columns=columns, hashes=["sha1"], size_limit=None) as writer:
            for row in rows[number * 10 : number * 10 + 10]:
                turns = templated(ConversationSettings(), 0, row["id"], row["text"])
                writer.write({**row, "conversations": turns})
        (entry,) = json.loads((Path(theirs) / "index.json").read_text())["shards"]
        mine = json.loads((tmp_path / "ours" / "index.json").read_text())["shards"][number]
        basename = f"shard.{number:05d}.mds"
        assert mine == {**entry, "raw_data": {**entry["raw_data"], "basename": basename}}
        wanted = (Path(theirs) / "shard.00000.mds").read_bytes()
        assert (tmp_path / "ours" / basename).read_bytes() == wanted


def test_rows_without_text_are_empty(tmp_path, read):
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", {"id": captions()["id"]}, null_text=True)
    run(root, tmp_path / "out", "mds")
    found = read(tmp_path / "out")
    assert [(one["text"], one["conversations"]) for one in found] == [("", None)] * 30


def test_a_shard_past_what_offsets_hold_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic, "_MOST_BYTES", 2000)
    with pytest.raises(ValueError, match="and 4 GiB is the most; synthesize with fewer units"):
        run(dataset, tmp_path / "out", "mds")
    assert not (tmp_path / "out" / "index.json").exists()
