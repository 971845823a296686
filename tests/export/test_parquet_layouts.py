"""What `datasets` and numpy read of an export are the rows of the dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from pipeline.schema import EMBEDDING
from pipeline.storage import open_manifest
from tests.export.samples import (
    captions,
    run,
    same_bits,
    source_rows,
    write_substitutes,
)


def without_embedding(row):
    """A row as it compares: NaN as a word, times as text."""
    return {
        name: "NaN" if value != value else str(value) if name == "seen" else value
        for name, value in row.items()
        if name != EMBEDDING
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_the_folder(rich_dataset, tmp_path, streaming):
    run(rich_dataset, tmp_path / "out", "hf")
    wanted = source_rows(rich_dataset)
    found = load_dataset(
        str(tmp_path / "out"), split="train", streaming=streaming, cache_dir=str(tmp_path / "c")
    )
    assert [without_embedding(row) for row in found] == [without_embedding(row) for row in wanted]
    kind = found.features[EMBEDDING].feature.dtype
    arrays = [np.array(row[EMBEDDING], kind) for row in found]  # widened in a list, exactly
    assert same_bits(arrays, [row[EMBEDDING] for row in wanted])
    alone = found.select_columns([EMBEDDING]).with_format("torch")
    tensors = [row[EMBEDDING].numpy() for row in alone]
    assert same_bits(tensors, [row[EMBEDDING].astype(np.float32) for row in wanted])


def test_the_parts_are_the_shards(dataset, tmp_path):
    run(dataset, tmp_path, "hf")
    receipts = sorted(open_manifest(dataset).receipts, key=lambda one: one.path)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        f"train-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    for number, receipt in enumerate(receipts):
        data = (tmp_path / "data" / f"train-{number:05d}-of-00003.parquet").read_bytes()
        assert data == (Path(dataset) / receipt.path).read_bytes()


def test_the_front_matter_names_the_files(dataset, tmp_path):
    run(dataset, tmp_path, "hf")
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
        }
    ]
    assert said["size_categories"] == ["n<1K"]
    assert "30 captions" in text


def read_npy(folder):
    """The arrays and the metadata rows of a clip-retrieval folder, in their order."""
    arrays = [np.load(path) for path in sorted((folder / "img_emb").iterdir())]
    tables = [pq.read_table(path) for path in sorted((folder / "metadata").iterdir())]
    assert [len(one) for one in arrays] == [len(one) for one in tables]
    return np.concatenate(arrays), pa.concat_tables(tables).to_pylist()


def test_clip_retrieval_folders(rich_dataset, tmp_path):
    run(rich_dataset, tmp_path, "npy")
    assert sorted(path.name for path in (tmp_path / "img_emb").iterdir()) == [
        "img_emb_00000.npy",
        "img_emb_00001.npy",
    ]
    arrays, rows = read_npy(tmp_path)
    wanted = source_rows(rich_dataset)
    assert same_bits(list(arrays), [row[EMBEDDING] for row in wanted])
    for row in wanted:
        row["image_path"], row["caption"] = row["id"], row.pop("text")
    assert [without_embedding(row) for row in rows] == [
        {name: without_embedding(row)[name] for name in rows[0]} for row in wanted
    ]


def test_the_arrays_can_be_mapped(dataset, tmp_path):
    run(dataset, tmp_path, "npy")
    mapped = np.load(tmp_path / "img_emb" / "img_emb_00000.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert mapped.shape == (10, 8)


def test_an_image_path_of_its_own_is_kept(tmp_path):
    columns = {**captions(4), "image_path": [f"{row}.jpg" for row in range(4)]}
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", columns)
    run(root, tmp_path / "out", "npy")
    _, rows = read_npy(tmp_path / "out")
    paths = dict(zip(columns["id"], columns["image_path"], strict=True))
    assert {row["id"]: row["image_path"] for row in rows} == paths


def test_a_second_caption_is_refused(tmp_path):
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", {**captions(4), "caption": list("abcd")})
    with pytest.raises(ValueError, match="passes a column caption through"):
        run(root, tmp_path / "out", "npy")


@pytest.mark.parametrize("name", ["hf", "npy"])
def test_rows_without_text_stay_null(name, tmp_path):
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", {"id": captions()["id"]}, null_text=True)
    run(root, tmp_path / "out", name)
    if name == "npy":
        texts = [row["caption"] for row in read_npy(tmp_path / "out")[1]]
    else:
        found = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c"))
        texts = list(found["text"])
    assert texts == [None] * 30
