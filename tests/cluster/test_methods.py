"""Every kind of method that needs no pairs, from two clouds to a verified dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.align import create_aligner
from pipeline.cluster.sources import source_corpus
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.stages.accumulate import read_embeddings
from pipeline.storage import embeddings_of, verify
from pipeline.storage.planning import plan
from tests.cluster.samples import TEXTS, cloud_config, dataset_rows, execute

SETTINGS = {
    "moment": {"moment": {"map": "whitening"}},
    "permuted": {"permuted": {"images": 200}},
    "c3": {"c3": {"deviation": 0.1}},
    "unicorn": {},
    "realign": {},
    "bures-gromov": {},
}
"""One of each kind: by moments, drawn by id with and without images, unnormalised, calibrated, with
a frame frozen from image rows."""
FLOAT16_STEP = 5e-4
"""Rounding to float16 of values below one."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for the runs of all methods: they share the moments of the clouds."""
    return tmp_path_factory.mktemp("methods") / "run"


def rows_of(config: RunConfig, side: str) -> torch.Tensor:
    """Return a side's embeddings as the pipeline reads them, in the order of the input."""
    corpus = source_corpus(config, side, Reporter(quiet=True))
    planned = plan(corpus, 1000)
    return torch.cat([read_embeddings(corpus, one, planned.dimension) for one in planned.units])


@pytest.mark.parametrize("method", SETTINGS)
def test_a_run_gives_the_rows_of_the_aligner_on_plain_tensors(
    local_ray: None, clouds: Path, output: Path, method: str
):
    align = {"method": method, **SETTINGS[method]}
    config = cloud_config(clouds, output, align=align, rejects={"check_ids": False})
    summary = execute(config)
    dataset = output / "dataset"
    assert verify(str(dataset)).problems == ()
    manifest, table = dataset_rows(dataset)
    assert manifest.unit_rows == (method != "unicorn")

    image, text = rows_of(config, "image"), rows_of(config, "text")
    ids = [f"text-{row:04d}" for row in range(TEXTS)]
    assert table.column("id").to_pylist() == ids
    aligner = create_aligner(method, config.align, config.seed).fit(image, text)
    expected = aligner.transform(text, ids)
    np.testing.assert_allclose(embeddings_of(table), expected.numpy(), atol=FLOAT16_STEP)

    again = execute(config)
    assert again["fit"]["reused"]
    assert [flow["reused_units"] for flow in again["flows"]] == [manifest.units]
    assert again["fit"]["fingerprint"] == summary["fit"]["fingerprint"]
    assert again["flows"][0]["version"] == summary["flows"][0]["version"]


def test_a_setting_of_another_method_does_not_fit_again(
    local_ray: None, clouds: Path, output: Path
):
    from pipeline.cluster.fit import fit

    def fitted(**align: object) -> bool:
        return execute(cloud_config(clouds, output, align=align), fit).reused

    fitted(method="realign")
    assert fitted(method="realign", c3={"deviation": 0.2}, rank=6, displacement=0.5)
    assert not fitted(method="bures-block", displacement=0.5)
    assert fitted(method="bures-block", displacement=0.5, moment={"map": "whitening"})
    assert not fitted(method="bures-block", displacement=0.6)
