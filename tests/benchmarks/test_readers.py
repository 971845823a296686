"""The benchmark of the readers compares like with like."""

from __future__ import annotations

import json

import pytest

from pipeline.benchmarks.readers import own_memory, peak_memory, pyarrow_rows, write_random_dataset
from pipeline.readers import SubstituteDataset
from pipeline.storage import verify
from tests.cluster.samples import invoke


def allocate(root: str, seed: int) -> None:
    """Hold 64 MB for a moment."""
    assert sum(bytearray(b"\1") * (64 * 2**20)) == 64 * 2**20


def test_the_command_ends_in_figures():
    result = invoke("bench", "readers", "--rows", "3000", "--dimension", "16", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    wanted = {"name", "value", "unit", "baseline", "ratio", "spread", "machine"}
    assert wanted < found.keys()
    assert found["ratio"] == pytest.approx(found["value"] / found["baseline"])
    assert found["spread"][0] <= found["value"] <= found["spread"][1]
    assert found["lookup"]["10000"]["value"] == found["value"]
    for one in found["memory_mb"].values():
        assert all(peak > 5 for peak in one["peak"])
        assert one["rows"] == [300, 3000]


def test_both_streams_give_the_same_rows(tmp_path):
    root = str(tmp_path)
    write_random_dataset(root, 500, 16, seed=3)
    assert verify(root).problems == ()
    theirs = {row["id"]: row for row in pyarrow_rows(root)}
    ours = {row["id"]: row for row in SubstituteDataset(root)}
    assert len(ours) == 500
    assert theirs.keys() == ours.keys()
    for name, row in ours.items():
        assert row["text"] == theirs[name]["text"]
        assert row["embedding"].tolist() == theirs[name]["embedding"].tolist()


def test_memory_is_that_of_the_work():
    assert peak_memory(allocate, "", 0) > 64
    assert own_memory() > 1
