"""Statistics kept night by night: equal to those of all rows, reading only what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cluster import segments
from pipeline.cluster.fit import FitSide
from pipeline.cluster.segments import CorpusStatistics, SegmentStore, update_statistics
from pipeline.cluster.session import ray_session
from pipeline.geometry.drift import RadialBins, TextStatistics
from pipeline.geometry.moments import Moments
from pipeline.report.console import Reporter
from pipeline.storage import Corpus, plan
from tests.cluster.samples import WIDTH, small_config, unit_cloud, write_embeddings

ROWS = 10
BINS = RadialBins.of(Moments.of(torch.from_numpy(unit_cloud(500, WIDTH, -0.4, 99))))


class Night:
    """A folder of files of one unit each, and the statistics store beside it."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "text"
        self.files.mkdir()
        self.store = SegmentStore(str(folder / "segments"))

    def write(self, number: int, seed: int | None = None) -> np.ndarray:
        values = unit_cloud(ROWS, WIDTH, -0.4, number if seed is None else seed)
        write_embeddings(self.files / f"{number:03d}.parquet", f"file{number}", values)
        return values

    def side(self) -> FitSide:
        corpus = Corpus(path=str(self.files), modality="text", embedding_column="embedding")
        return FitSide("text", corpus, plan(corpus, ROWS), {"model": "given", "fingerprint": ""})

    def update(self, fresh_files: tuple[int, ...] = ()) -> CorpusStatistics:
        side = self.side()
        fresh = {unit.key for unit in side.plan.units if int(Path(unit.path).stem) in fresh_files}
        return update_statistics(self.store, side, BINS, fresh, Reporter(quiet=True))

    def sizes(self) -> list[int]:
        return sorted(len(segment.units) for segment in self.store.load())


@pytest.fixture
def night(local_ray: None, tmp_path: Path) -> Night:
    return Night(tmp_path)


def check(found: TextStatistics | None, values: list[np.ndarray]) -> None:
    whole = TextStatistics.of(torch.from_numpy(np.concatenate(values)), BINS)
    assert found is not None
    assert found.moments.count == whole.moments.count
    torch.testing.assert_close(found.moments.mean, whole.moments.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.moments.covariance, whole.moments.covariance, atol=1e-6, rtol=0
    )
    assert found.radii is not None
    assert whole.radii is not None
    # Rows are read normalised again, which may move one over the edge of a bin.
    assert int((found.radii.counts - whole.radii.counts).abs().sum()) <= 2


def test_only_what_came_is_read(night: Night, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segments, "UNITS_PER_SEGMENT", 4)
    with ray_session(small_config(Path("unused"))):
        values = {number: night.write(number) for number in range(6)}
        first = night.update(tuple(range(6)))
        check(first.whole, list(values.values()))
        check(first.fresh, list(values.values()))
        assert first.units_read == 6
        assert night.sizes() == [2, 4]

        values[6] = night.write(6)
        second = night.update((6,))
        assert second.units_read == 1
        check(second.whole, list(values.values()))
        check(second.fresh, [values[6]])

        same = night.update()
        assert same.units_read == 0
        assert same.fresh is None
        check(same.whole, list(values.values()))
        assert night.sizes() == [3, 4]  # small segments of earlier nights became one

        # An edit: what stood in one segment with the old unit is read again, no more.
        values[6] = night.write(6, seed=600)
        edited = night.update((6,))
        assert edited.units_read == 3
        check(edited.whole, list(values.values()))
        check(edited.fresh, [values[6]])

        (night.files / "006.parquet").unlink()
        del values[6]
        assert night.update().units_read == 0
        check(night.update().whole, list(values.values()))


def test_units_that_are_fresh_again_are_counted_apart(night: Night):
    """After a rollback, units of one segment may be old and new."""
    with ray_session(small_config(Path("unused"))):
        values = [night.write(number) for number in range(3)]
        night.update()
        found = night.update((2,))
        assert found.units_read == 3
        check(found.fresh, values[2:])
        check(found.whole, values)


def test_damaged_segments_are_counted_again(night: Night):
    with ray_session(small_config(Path("unused"))):
        values = [night.write(number) for number in range(2)]
        night.update()
        (model,) = Path(night.store.root).glob("*/model.safetensors")
        model.write_bytes(model.read_bytes()[:-1])
        found = night.update()
        assert found.units_read == 2
        check(found.whole, values)


def test_a_unit_without_a_usable_row(night: Night):
    with ray_session(small_config(Path("unused"))):
        values = night.write(0)
        write_embeddings(night.files / "001.parquet", "file1", np.zeros((ROWS, WIDTH), np.float32))
        found = night.update((1,))
        assert found.fresh is None
        assert found.rejected == ROWS
        check(found.whole, [values])
        assert night.update((1,)).units_read == 0
