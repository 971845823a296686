"""Embeddings of every kind on either side, through Ray, to a verified dataset."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.align import create_aligner
from pipeline.report.console import Reporter
from pipeline.storage import verify
from pipeline.storage.shards import embeddings_of
from tests.cluster.samples import (
    IMAGES,
    TEXTS,
    WIDTH,
    dataset_rows,
    error_line,
    execute,
    invoke,
    small_config,
    small_values,
    unit_cloud,
    write_config,
)
from tests.storage.embeddings import KINDS, write_kind

TEXT_IDS = [f"text {row:04d}" for row in range(TEXTS)]
IMAGE_IDS = [f"image {row:04d}" for row in range(IMAGES)]
LENGTH = 3


class Lines(Reporter):
    """A quiet reporter that remembers what it was told to say."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_either_side(local_ray: None, tmp_path: Path, kind: str) -> None:
    """Each kind is the text of one run and the images of the next, and all give the same rows."""
    texts, images = unit_cloud(TEXTS, WIDTH, -0.4, 1), unit_cloud(IMAGES, WIDTH, 0.6, 2)
    of_images = KINDS[KINDS.index(kind) - 1]
    text = write_kind(tmp_path / "text", kind, texts * LENGTH, TEXT_IDS, side="text")
    image = write_kind(tmp_path / "image", of_images, images, IMAGE_IDS, side="image")
    config = small_config(
        tmp_path / "run",
        text={"path": str(tmp_path / "text"), **text},
        image={"path": str(tmp_path / "image"), **image},
        align={"method": "realign"},
        output={"dtype": "float32"},
    )
    reporter = Lines()
    summary = execute(config, reporter=reporter)
    root = tmp_path / "run" / "dataset"
    assert verify(str(root)).problems == ()
    manifest, table = dataset_rows(root)
    assert (manifest.rows, manifest.quarantined) == (TEXTS, {})
    assert table.column("id").to_pylist() == TEXT_IDS
    captioned = kind in ("pickle", "clip-retrieval")
    captions = [f"caption of {one}" if captioned else None for one in TEXT_IDS]
    assert table.column("text").to_pylist() == captions
    both = torch.from_numpy(images), torch.from_numpy(texts)
    whole = create_aligner("realign", config.align, config.seed).fit(*both)
    np.testing.assert_allclose(
        embeddings_of(table), whole.transform(both[1]).numpy(), atol=2e-5, rtol=0
    )
    # That the text was of another length is said once, and stands in the summary.
    (norms,) = (flow["norms"] for flow in summary["flows"])
    assert norms["off"] == TEXTS
    np.testing.assert_allclose([norms["least"], norms["greatest"]], LENGTH, rtol=1e-5)
    assert summary["fit"]["norms"] == {"image": {}, "text": norms}
    (said,) = (line for line in reporter.said if "length" in line)
    assert said == (
        f"{TEXTS} of {TEXTS} embeddings of {tmp_path / 'text'} had another length than 1 (norms "
        "between 3 and 3); they are normalised"
    )


def test_numbers_that_are_no_embeddings(local_ray: None, tmp_path: Path) -> None:
    texts, images = unit_cloud(TEXTS, WIDTH, -0.4, 1), unit_cloud(IMAGES, WIDTH, 0.6, 2)
    np.save(tmp_path / "texts.npy", texts)
    np.save(tmp_path / "images.npy", images * 1e5)
    config = small_config(
        tmp_path / "run",
        text={"path": str(tmp_path / "texts.npy")},
        image={"path": str(tmp_path / "images.npy")},
        align={"method": "realign"},
    )
    with pytest.raises(ValueError, match=r"images\.npy have norms between 1e\+05 and 1e\+05"):
        execute(config)


class Runs:
    """Pickled as a command of the shell."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.mark}",)


def test_a_crafted_pickle_ends_the_command_and_nothing_runs(
    local_ray: None, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps([{"id": "a", "embed": Runs(mark)}]))
    np.save(tmp_path / "images.npy", unit_cloud(IMAGES, WIDTH, 0.6, 2))
    values = small_values(
        tmp_path / "run",
        text={"path": str(tmp_path / "rows.pkl")},
        image={"path": str(tmp_path / "images.npy")},
    )
    result = invoke("run", write_config(tmp_path / "run.yaml", values), "-q")
    assert result.exit_code == 1
    assert "rows.pkl is not read: it asks for posix.system" in error_line(result)
    assert not mark.exists()
