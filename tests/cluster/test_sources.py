"""Stored embeddings belong to one corpus and one encoder: used when they fit, never when stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.cluster.encode import encode
from pipeline.cluster.fit import fit
from pipeline.cluster.outputs import output
from pipeline.cluster.run import run as whole_run
from pipeline.cluster.synthesize import synthesize
from pipeline.config import ConfigError
from pipeline.report.console import Reporter
from pipeline.storage import Corpus, open_manifest, plan
from tests.cluster.conftest import Run, World
from tests.cluster.samples import ONE_ACTOR, execute, small_config


def _config(output_folder: Path, text: Path, images: Path, **sections: object):
    return small_config(
        output_folder,
        text={"path": str(text)},
        image={"path": str(images)},
        output={"path": str(output_folder), "embeddings_dtype": "float32"},
        units={"rows_per_shard": 200},
        ray=ONE_ACTOR,
        **sections,
    )


def test_a_renamed_input_is_no_other_input(
    local_ray: None, caption_run: Run, world: World, tmp_path: Path
) -> None:
    shutil.copytree(caption_run.output, tmp_path / "run")
    renamed = tmp_path / "renamed.txt"
    shutil.copy(world.text, renamed)
    config = _config(tmp_path / "run", renamed, world.images)
    before = open_manifest(str(tmp_path / "run" / "dataset"))
    summary = execute(config, whole_run)
    flows = {flow["name"]: flow for flow in summary["flows"]}
    assert flows["encoding text"]["reused_units"] == flows["encoding text"]["units"]
    assert flows["synthesizing"]["reused_units"] == flows["synthesizing"]["units"]
    after = open_manifest(str(tmp_path / "run" / "dataset"))
    assert [one.sha256 for one in after.receipts] == [one.sha256 for one in before.receipts]


def test_synthesize_after_run_takes_what_run_stored(
    local_ray: None, caption_run: Run, world: World, tmp_path: Path
) -> None:
    shutil.copytree(caption_run.output, tmp_path / "run")
    dataset = tmp_path / "run" / "dataset"
    shards = sorted(path.name for path in (dataset / "data").iterdir())
    report = execute(_config(tmp_path / "run", world.text, world.images), synthesize)
    assert report.reused_units == report.units
    assert sorted(path.name for path in (dataset / "data").iterdir()) == shards


def test_embeddings_of_another_corpus_are_refused(
    local_ray: None, caption_run: Run, world: World, tmp_path: Path
) -> None:
    shutil.copytree(caption_run.output, tmp_path / "run")
    other = _config(tmp_path / "run", world.jsonl, world.images)
    with pytest.raises(ValueError, match=r"text\.path .*run `anisoalign encode`"):
        execute(other, fit)
    encoder = {"model": "demo", "precision": "bf16"}
    precise = _config(tmp_path / "run", world.text, world.images, encoder=encoder)
    with pytest.raises(ValueError, match=r"encoder\.precision .*run `anisoalign encode`"):
        execute(precise, fit)


def test_the_wrong_side_is_refused(caption_run: Run) -> None:
    texts = str(caption_run.output / "embeddings" / "text")
    with pytest.raises(ValueError, match="text-embeddings, not image-embeddings"):
        plan(Corpus(path=texts, modality="image"), 50)
    with pytest.raises(ValueError, match="substitutes, not text-embeddings"):
        plan(Corpus(path=str(caption_run.output / "dataset"), modality="text"), 50)


def test_a_relative_output_inside_a_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "package"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / "captions.txt").write_text("a caption\n")
    config = small_config(tmp_path, output={"path": "runs/here"}, text={"path": "captions.txt"})
    with pytest.raises(ConfigError, match="absolute path"):
        output(config)
    with pytest.raises(ConfigError, match="absolute path"):
        encode(config, Reporter(quiet=True))
