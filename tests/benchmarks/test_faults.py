"""Nights killed at random moments end in the rows of an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.benchmarks.faults import FaultError, _check_resumed, rows_digest, run_faults
from pipeline.storage import open_manifest


@pytest.mark.timeout(1500)  # runs in processes of their own
def test_killed_nights_are_resumed_to_the_same_rows(tmp_path: Path):
    """`anisoalign bench faults` does this with 20 kills."""
    report = run_faults(tmp_path, kills=1, seed=1, units=40, rows_per_unit=20)
    assert (report.units, report.rows) == (40, 800)
    result = report.to_mapping()
    assert result["kills"] == 1
    assert result["ratio"] == pytest.approx(result["value"] / report.uninterrupted)

    # The checks themselves: other rows, or a shard written again, are found out.
    output = tmp_path / "uninterrupted"
    wanted = rows_digest(str(output / "dataset"))
    with pytest.raises(FaultError, match="other rows"):
        _check_resumed(output, (wanted[0], "0"), {})
    path = open_manifest(str(output / "dataset")).receipts[0].path
    with pytest.raises(FaultError, match="written again"):
        _check_resumed(output, wanted, {f"dataset/{path}": (0, 0)})
