"""The demo world's corpora and one run from captions to substitutes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.corpora import write_demo_corpora
from tests.cluster.samples import error_line, execute, invoke, small_config, write_config

CAPTIONS = 600
"""More than the quantiles that the radial transport is made of, so that it has no steps."""


@dataclass(frozen=True)
class World:
    """Small corpora of the demo world: captions in three formats' worth of rows, and images."""

    captions: tuple[str, ...]
    text: Path
    jsonl: Path
    images: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Draw 600 captions, all different, as text and JSON lines, and 96 pictures in Parquet."""
    folder = tmp_path_factory.mktemp("world")
    corpora = write_demo_corpora(folder / "drawn", captions=700, images=96, pairs=1)
    drawn = [json.loads(line)["text"] for line in corpora.captions.read_text().splitlines()]
    captions = tuple(dict.fromkeys(drawn))[:CAPTIONS]
    assert len(captions) == CAPTIONS
    text, jsonl = folder / "captions.txt", folder / "captions.jsonl"
    text.write_text("".join(f"{caption}\n" for caption in captions))
    lines = [{"id": f"c{row:03d}", "text": caption} for row, caption in enumerate(captions)]
    jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return World(captions, text, jsonl, corpora.images)


@dataclass(frozen=True)
class Run:
    """The output folder and the summary of a run."""

    output: Path
    summary: Mapping[str, Any]


@pytest.fixture(scope="session")
def caption_run(local_ray: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Encode, fit and synthesize from captions.txt and pictures; to be left alone.

    Embeddings are stored as float32: fitted on so few captions, the radial transport is so steep
    that it would enlarge a rounding to float16.
    """
    output = tmp_path_factory.mktemp("caption-run") / "run"
    config = small_config(
        output,
        text={"path": str(world.text)},
        image={"path": str(world.images)},
        output={"embeddings_dtype": "float32"},
        units={"rows_per_shard": 200},
    )
    return Run(output, execute(config))


@pytest.fixture
def fails(local_ray: None, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a quiet command on values and returns its only error line."""

    def check(command: str, values: dict[str, Any], code: int = 1, *arguments: str) -> str:
        path = write_config(tmp_path / "bad.yaml", values)
        result = invoke(command, path, "-q", *arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return error_line(result)

    return check
