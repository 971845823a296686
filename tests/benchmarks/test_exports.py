"""The benchmark of exports measures every format, and exports whole datasets while it does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.benchmarks.exports import LARGER, REPEATS, copy_shards, run_exports
from pipeline.benchmarks.machine import machine_facts
from pipeline.storage import open_manifest


def test_formats_are_measured(tmp_path: Path):
    seen = []
    report = run_exports(
        tmp_path,
        rows=60,
        dimension=8,
        formats=["hf", "llava"],
        progress=lambda *counts: seen.append(counts),
    )
    assert seen == [(1, 2), (2, 2)]
    assert open_manifest(str(tmp_path / "larger")).rows == 60 * LARGER
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "larger"]
    result = json.loads(json.dumps(report.to_mapping(), allow_nan=False))
    assert set(result["formats"]) == {"hf", "llava"}
    shard = open_manifest(str(tmp_path / "dataset")).receipts[0]
    assert result["formats"]["hf"]["bytes"] > shard.bytes
    for name, found in result["formats"].items():
        assert len(report.formats[name].rows_per_second) == REPEATS
        assert found["ratio"] == found["value"] / result["baseline"]
        assert 20 < found["peak_memory_mb"]["rows"] < 500
    slowest = result["formats"][result["slowest"]]
    assert (
        result["value"]
        == slowest["value"]
        == min(found["value"] for found in result["formats"].values())
    )
    assert result["machine"] == machine_facts()


def test_the_baseline_copies(tmp_path: Path):
    from tests.export.samples import write_substitutes

    root, target = tmp_path / "dataset", tmp_path / "out"
    receipts = write_substitutes(str(root), tmp_path / "source").receipts
    assert copy_shards(str(root), str(target)) == [one.sha256 for one in receipts]
    for one in receipts:
        assert hashlib.sha256((target / one.path).read_bytes()).hexdigest() == one.sha256


def test_the_machine_is_told():
    facts = machine_facts()
    assert facts["cpus"] >= 1
    assert facts["memory_gb"] > 0
    assert facts["processor"]
