"""Ids that several units share, with and without kept hashes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.cluster.duplicates import find_duplicates
from pipeline.cluster.units import UnitFlow
from pipeline.config import parse_config
from pipeline.report.console import Reporter
from pipeline.storage import plan
from pipeline.storage.corpus import Corpus
from tests.storage.samples import text_corpus, write_jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    draw = random.Random(0)
    for name in "abc":
        records = [{"id": str(draw.randrange(40)), "text": f"{name} {row}"} for row in range(12)]
        (tmp_path / "in").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", records)
    return text_corpus(tmp_path / "in")


def flow(corpus: Corpus) -> UnitFlow:
    return UnitFlow(parse_config({}), "checking", corpus, 6, Reporter(quiet=True))


def kept(root: Path) -> set[str]:
    return {path.name for path in (root / "ids").iterdir()}


def test_only_new_units_are_hashed(
    local_ray: None, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, reporter = tmp_path / "out", Reporter(quiet=True)
    planned = plan(corpus, 6)
    units, duplicates = find_duplicates(corpus, planned, reporter, str(root), flow(corpus))
    assert duplicates is not None
    assert units != planned.units
    renamed = [one for one in zip(units, planned.units, strict=True) if one[0] != one[1]]
    assert all(unit.planned_key == before.key != unit.key for unit, before in renamed)
    assert {unit.planned_key for unit in units} == {"", *(before.key for _, before in renamed)}
    first = kept(root)
    assert len(first) == len(planned.units) == 6
    with monkeypatch.context() as patch:
        patch.setattr("ray.data.from_items", None)  # nothing is left for Ray
        again, same = find_duplicates(corpus, planned, reporter, str(root), flow(corpus))
    assert again == units
    assert same is not None
    assert same.ids.unit_keys == duplicates.ids.unit_keys
    assert same.ids.hashes.tolist() == duplicates.ids.hashes.tolist()
    assert same.ids.keepers.tolist() == duplicates.ids.keepers.tolist()

    write_jsonl(Path(corpus.path) / "d.jsonl", [{"id": "1", "text": "x"}, {"id": "z", "text": "y"}])
    (root / "ids" / min(first)).write_bytes(b"damaged")
    grown = plan(corpus, 6)
    modified = {name: (root / "ids" / name).stat().st_mtime_ns for name in first - {min(first)}}
    warm, _ = find_duplicates(corpus, grown, reporter, str(root), flow(corpus))
    cold, _ = find_duplicates(corpus, grown, reporter, str(tmp_path / "other"), flow(corpus))
    assert warm == cold
    assert len(kept(root) - first) == 1
    assert {name: (root / "ids" / name).stat().st_mtime_ns for name in modified} == modified
