"""Captions however they come, alone and mixed: the same rows, to a verified dataset."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.synthesize import synthesize
from pipeline.storage import embeddings_of, verify
from tests.cluster.conftest import Run, World
from tests.cluster.samples import dataset_rows, execute, quarantined_rows, small_config

ROWS = 90


@pytest.fixture
def rows(world: World) -> list[dict[str, str]]:
    return [json.loads(line) for line in world.jsonl.read_text().splitlines()[:ROWS]]


def _text(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    (folder / "a.txt").write_text("".join(f"{row['text']}\n" for row in rows))
    return {"path": str(folder / "a.txt")}


def _json_lines(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder)}


def _zstd(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    with pa.CompressedOutputStream(str(folder / "a.jsonl.zst"), "zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    return {"path": str(folder / "*.zst")}


def _csv(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("caption", "id"), *((row["text"], row["id"]) for row in rows)])
    return {"path": str(folder / "a.csv"), "text_column": "caption"}


def _parquet(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    columns = {name: [row[key] for row in rows] for name, key in (("key", "id"), ("text", "text"))}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return {"path": str(folder), "id_column": "key"}


def _data_set(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    return {"path": str(folder), "format": "datasets", "hub": {"split": "train"}}


def _saved_data_set(folder: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return {"path": str(folder / "saved"), "format": "datasets"}


WRITERS = (_text, _json_lines, _zstd, _csv, _parquet, _data_set, _saved_data_set)


def _config(output: Path, run: Run, text: dict[str, Any], **sections: Any):
    return small_config(
        output,
        text=text,
        aligner={"path": str(run.output / "aligner")},
        units={"rows_per_shard": 40},
        **sections,
    )


def _substitutes(output: Path) -> pa.Table:
    """Return id, text and embedding of all rows, by text."""
    _, table = dataset_rows(output / "dataset")
    return table.select(["id", "text", "embedding"]).sort_by("text")


def test_the_same_captions_are_the_same_rows(
    local_ray: None, caption_run: Run, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    found: dict[str, pa.Table] = {}
    for write in WRITERS:
        folder = tmp_path / write.__name__
        folder.mkdir()
        output = folder / "run"
        report = execute(_config(output, caption_run, write(folder, rows)), synthesize)
        assert (report.rows, report.rejected) == (ROWS, 0)
        assert verify(str(output / "dataset")).problems == ()
        found[write.__name__] = _substitutes(output)
    plain = found.pop("_text")
    first = found["_parquet"]
    assert set(first.column("id").to_pylist()) == {row["id"] for row in rows}
    for name, table in found.items():
        assert table.equals(first), name
    # Lines of text have no ids of their own, and so stand in another order in their shards.
    assert plain.column("text").equals(first.column("text"))
    np.testing.assert_allclose(embeddings_of(plain), embeddings_of(first), atol=2e-3)


def test_a_mixture_of_sources(
    local_ray: None, caption_run: Run, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    sources = {}
    for number, write in enumerate((_json_lines, _csv, _parquet)):
        folder = tmp_path / write.__name__
        folder.mkdir()
        sources[f"s{number}"] = write(folder, rows[number * 30 : number * 30 + 30])
    weights = {"s0": 3.0, "s1": 1.0, "s2": 2.0}
    for name, weight in weights.items():
        sources[name]["weight"] = weight
    config = _config(tmp_path / "run", caption_run, {"sources": sources})
    report = execute(config, synthesize)
    _, table = dataset_rows(tmp_path / "run" / "dataset")
    assert Counter(table.column("source").to_pylist()) == {"s0": 30, "s1": 10, "s2": 20}
    assert report.rows == 60
    texts = {row["id"]: row["text"] for row in rows}
    for row in table.select(["id", "text"]).to_pylist():
        assert texts[row["id"]] == row["text"]
    assert verify(str(tmp_path / "run" / "dataset")).problems == ()
    again = execute(config, synthesize)
    assert again.unchanged
    # A source more: what was chosen of the others stays, since they share no weights.
    for source in sources.values():
        del source["weight"]
    sources["s1"]["max_rows"] = 7
    wider = execute(_config(tmp_path / "run", caption_run, {"sources": sources}), synthesize)
    assert wider.rows == 67


def test_captions_that_occur_again_across_sources(
    local_ray: None, caption_run: Run, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    shouted = [{"id": f"x{row['id']}", "text": row["text"].upper()} for row in rows[:20]]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    sources = {
        "one": _parquet(tmp_path / "one", rows[:50]),
        "two": _csv(tmp_path / "two", shouted),
    }
    config = _config(
        tmp_path / "run",
        caption_run,
        {"sources": sources},
        rejects={"duplicate_texts": "reject"},
    )
    report = execute(config, synthesize)
    assert (report.rows, report.rejected) == (50, 20)
    quarantined = quarantined_rows(tmp_path / "run" / "dataset")
    assert {reason for _, _, reason in quarantined} == {"duplicate_text"}
    _, table = dataset_rows(tmp_path / "run" / "dataset")
    assert set(table.column("source").to_pylist()) == {"one"}
    assert execute(config, synthesize).unchanged
