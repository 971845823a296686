"""What was done is kept: whole runs, single shards, half a training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.align import load_aligner
from pipeline.cluster.fit import fit
from pipeline.cluster.training import TrainingRows, load_state
from pipeline.report.console import Reporter
from pipeline.storage import Corpus, open_manifest, plan, versions
from pipeline.storage.artifacts import read_artifact
from tests.cluster.samples import cloud_config, execute


def shard_times(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "dataset/data").iterdir()}


@pytest.fixture
def copied_run(cloud_run, tmp_path: Path) -> Path:
    """Return a copy of the run on precomputed clouds, to be changed."""
    return Path(shutil.copytree(cloud_run[0], tmp_path / "run"))


def test_the_same_run_twice_gives_the_same_bits(cloud_run, clouds: Path, tmp_path: Path):
    output, summary = cloud_run
    again = execute(cloud_config(clouds, tmp_path / "again"))
    first, second = (
        open_manifest(str(folder / "dataset")) for folder in (output, tmp_path / "again")
    )
    assert again["fit"]["fingerprint"] == summary["fit"]["fingerprint"]
    assert [(one.path, one.sha256) for one in second.receipts] == [
        (one.path, one.sha256) for one in first.receipts
    ]
    assert (tmp_path / "again/aligner/model.safetensors").read_bytes() == (
        output / "aligner/model.safetensors"
    ).read_bytes()


def test_a_second_run_in_the_same_folder_keeps_everything(cloud_run, clouds: Path):
    output, _ = cloud_run
    before = shard_times(output)
    model = (output / "aligner/model.safetensors").stat().st_mtime_ns
    summary = execute(cloud_config(clouds, output))
    (flow,) = summary["flows"]
    assert flow["reused_units"] == flow["units"] == 3
    assert summary["fit"]["reused"]
    assert shard_times(output) == before
    assert (output / "aligner/model.safetensors").stat().st_mtime_ns == model
    assert versions(str(output / "dataset")) == [flow["version"]]


def test_a_lost_shard_is_written_again_alone(copied_run: Path, clouds: Path):
    before = shard_times(copied_run)
    manifest = open_manifest(str(copied_run / "dataset"))
    lost = manifest.receipts[1].path.removeprefix("data/")
    (copied_run / "dataset/data" / lost).unlink()
    summary = execute(cloud_config(clouds, copied_run))
    assert summary["flows"][0]["reused_units"] == 2
    assert summary["fit"]["reused"]
    after = shard_times(copied_run)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {lost}
    again = open_manifest(str(copied_run / "dataset"))
    assert [one.sha256 for one in again.receipts] == [one.sha256 for one in manifest.receipts]


def test_a_new_seed_makes_a_new_aligner_and_a_new_version(copied_run: Path, clouds: Path):
    """Nothing of the old version is touched: it stays readable beside the new one."""
    root = str(copied_run / "dataset")
    old = open_manifest(root)
    before = shard_times(copied_run)
    summary = execute(cloud_config(clouds, copied_run, seed=1))
    assert not summary["fit"]["reused"]
    assert summary["flows"][0]["reused_units"] == 0
    new = open_manifest(root)
    assert new.parent == old.version
    assert open_manifest(root, old.version) == old
    after = shard_times(copied_run)
    assert before.items() <= after.items()
    assert {one.path for one in new.receipts}.isdisjoint(one.path for one in old.receipts)


class Watching(Reporter):
    """A quiet reporter that hands every training step to a function."""

    def __init__(self, on_step: Callable[[str, int], None]) -> None:
        super().__init__(quiet=True)
        self._on_step = on_step

    @contextmanager
    def training(self) -> Iterator[Callable[[str, int, int, float], None]]:
        yield lambda stage, step, steps, loss: self._on_step(stage, step)


@pytest.mark.parametrize(
    ("killed_at", "resumed_from"),
    [(("prior", 6), ("prior", 5)), (("refiner", 5), ("refiner", 5)), (("prior", 2), ("prior", 1))],
)
def test_a_killed_fit_goes_on_from_its_checkpoint(
    cloud_run,
    clouds: Path,
    tmp_path: Path,
    killed_at: tuple[str, int],
    resumed_from: tuple[str, int],
):
    """Checkpoints fall on every fourth step and on a stage's last."""
    config = cloud_config(clouds, tmp_path / "run", train={"checkpoint_every": 4})

    def kill(stage: str, step: int) -> None:
        if (stage, step) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(config, fit, Watching(kill))
    assert not (tmp_path / "run/aligner/config.json").exists()
    steps: list[tuple[str, int]] = []
    report = execute(config, fit, Watching(lambda *step: steps.append(step)))
    assert steps[0] == resumed_from
    assert not report.reused
    unbroken = load_aligner(str(cloud_run[0] / "aligner"))
    resumed = load_aligner(report.path)
    assert resumed.history == unbroken.history
    assert resumed.fingerprint == unbroken.fingerprint


def test_half_an_artifact_is_fitted_anew(copied_run: Path, clouds: Path):
    before = load_aligner(str(copied_run / "aligner")).fingerprint
    model = copied_run / "aligner/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    report = execute(cloud_config(clouds, copied_run), fit)
    assert not report.reused
    assert report.fingerprint == before


def test_the_artifact_holds_the_statistics_of_its_fit(cloud_run):
    _, tensors = read_artifact(str(cloud_run[0] / "aligner"))
    assert int(tensors["statistics.text.count"][0]) == 120
    assert int(tensors["statistics.image.count"][0]) == 150
    names = {path.name.split("-moments-")[0] for path in (cloud_run[0] / "statistics").iterdir()}
    assert names == {"text", "image"}


def test_training_rows_are_a_seeded_choice_of_units(clouds: Path):
    corpus = Corpus(
        path=str(clouds / "texts.parquet"), modality="text", embedding_column="embedding"
    )
    planned = plan(corpus, 20)
    chosen = TrainingRows.choose(corpus, planned.units, 12, 50, seed=0)
    assert len(chosen.units) == 3
    assert chosen.load().shape == (50, 12)
    again = TrainingRows.choose(corpus, planned.units[::-1], 12, 50, seed=0)
    assert torch.equal(again.load(), chosen.load())
    others = {TrainingRows.choose(corpus, planned.units, 12, 50, seed=s).units for s in range(8)}
    assert len(others) > 1
    everything = TrainingRows.choose(corpus, planned.units, 12, 10_000, seed=0)
    assert everything.load().shape == (120, 12)


def test_a_checkpoint_reads_back_whole(cloud_run):
    (folder,) = (cloud_run[0] / "training").iterdir()
    assert folder.name.endswith("-driver")
    state = load_state(str(folder / "checkpoint"))
    assert {name: stage.step for name, stage in state.items()} == {"prior": 8, "refiner": 6}
    aligner = load_aligner(str(cloud_run[0] / "aligner"))
    assert {name: stage.losses for name, stage in state.items()} == aligner.history
