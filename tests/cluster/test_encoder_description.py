"""What a worker says of the encoder, when it is asked and what of it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import encoder_description
from pipeline.cluster.encoder_description import begin_description, described_encoder
from pipeline.config import RunConfig, parse_config
from pipeline.encoders import OpenClipEncoder


def config(output: Path, **values: Any) -> RunConfig:
    sections = {"encoder": {"model": "demo"}, "output": {"path": str(output)}, **values}
    return parse_config(sections)


def test_a_worker_says_what_the_encoder_says(local_ray: None, tmp_path: Path) -> None:
    found = described_encoder(config(tmp_path))
    assert found == OpenClipEncoder("demo", towers=("text",)).describe()
    assert json.loads((tmp_path / "plans/encoder.json").read_text())["description"] == found


def test_what_was_kept_of_other_files_is_not_taken(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = described_encoder(config(tmp_path))
    path = tmp_path / "plans/encoder.json"
    kept = path.read_text()
    monkeypatch.setattr(encoder_description, "quick_identity", lambda *_: ["touched"])
    assert described_encoder(config(tmp_path)) == first
    assert json.loads(path.read_text())["key"] != json.loads(kept)["key"]
    path.write_text(kept.replace(first["fingerprint"], "0" * 64))
    assert described_encoder(config(tmp_path)) == first


def test_weights_that_change_meanwhile_are_not_kept_under_the_new_ones(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = iter([["before"], ["after"], ["after"]])
    monkeypatch.setattr(encoder_description, "quick_identity", lambda *_: next(identities))
    described_encoder(config(tmp_path))
    before = json.loads((tmp_path / "plans/encoder.json").read_text())["key"]
    described_encoder(config(tmp_path))
    assert json.loads((tmp_path / "plans/encoder.json").read_text())["key"] != before


def test_an_encoder_that_is_not_there_is_one_line(local_ray: None, tmp_path: Path) -> None:
    wrong = config(tmp_path, encoder={"model": "ViT-B-23"}, text={"path": "captions.txt"})
    assert begin_description(wrong)
    for _ in range(2):  # a failure is not kept
        with pytest.raises(ValueError, match=r"no architecture 'ViT-B-23'; did you mean") as error:
            described_encoder(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "begins"),
    [
        ({"text": {"path": "captions.txt"}}, True),
        ({"text": {"path": "demo:captions"}}, True),
        ({"text": {"path": "a/*.parquet"}}, True),
        ({"text": {"path": "a/*.parquet", "embedding_column": "embedding"}}, False),
        ({"text": {"path": "a/*.npy"}}, False),
        ({"text": {"path": "a.parquet", "format": "dataset"}}, False),
        ({"text": {"path": "runs/embeddings/text"}}, False),
        ({"text": {"path": "a.npy"}, "image": {"path": "images.parquet"}}, True),
        (
            {
                "text": {"path": "a.npy"},
                "image": {"path": "images.parquet"},
                "aligner": {"path": "aligner"},
            },
            False,
        ),
        ({}, False),
    ],
)
def test_it_is_begun_where_a_side_is_plainly_not_embeddings(
    values: dict[str, Any], begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(encoder_description, "_begin", lambda _, key: begun.append(key))
    assert begin_description(config(tmp_path, **values)) is begins
    assert len(begun) == begins
