"""What docs/encoders.md says, exists and runs: names, keys, commands, the class that it shows."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest

from pipeline.config import known_keys, load_config
from pipeline.demo.corpora import write_demo_corpora
from pipeline.encoders import Encoder
from pipeline.encoders.class_encoder import ClassEncoder
from pipeline.encoders.text_forwards import text_forward
from pipeline.storage import open_manifest, verify
from pipeline.storage.corpus import Corpus
from pipeline.storage.planning import plan
from tests.cluster.samples import SMALL_ALIGN, write_config
from tests.documents import ROOT, problem
from tests.encoders.conftest import picture

TEXT = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
SHELL = "".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
CLASS, WRITER = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line.removeprefix("PYTHONPATH=$PWD ").removeprefix(".venv/bin/"), comments=True)
    for line in SHELL.splitlines()
    if "anisoalign " in line
]
POSITIONS = {
    "up to the end token": "CausalForward",
    "the caption, one position of padding": "ClassTokenForward",
    "the longest caption": "MaskedPaddingForward",
    "all": "PlainForward",
}
FAMILIES = [
    (name, cells[3])
    for cells in (line.split("|") for line in TEXT.splitlines() if line.startswith("| "))
    if len(cells) == 5 and cells[2].strip().startswith("`")
    for name in re.findall(r"`([^`]+)`", cells[2])
]


@pytest.mark.parametrize(("name", "told"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_architectures_exist_and_are_trimmed_as_told(name: str, told: str) -> None:
    config = open_clip.get_model_config(name)
    assert config is not None
    (kind,) = [kind for start, kind in POSITIONS.items() if told.strip().startswith(start)]
    text = config["text_cfg"]
    if "hf_model_name" in text:  # its own config is on the hub; see tests/encoders
        assert kind == "MaskedPaddingForward"
        return
    small = {"width": 32, "heads": 2, "layers": 1, "vocab_size": 64}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    custom = config.get("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(
        embed_dim=16, vision_cfg=vision, text_cfg=text | small
    )
    assert type(text_forward(model)).__name__ == kind


def test_every_family_is_told_of() -> None:
    assert len(FAMILIES) > 20


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_exist_and_their_configurations_are_valid(words: list[str]) -> None:
    settings = [word for word in words if "=" in word]
    known = [one for one in settings if not one.startswith("encoder.options.")]
    assert problem([word for word in words if word != "--set" and "=" not in word]) is None
    assert {one.partition("=")[0] for one in known} <= set(known_keys())
    load_config(ROOT / words[2], settings)


def test_keys_exist() -> None:
    named = re.findall(r"`((?:encoder|ray|rejects|units)\.\w+)", PROSE)
    assert {"encoder.compile", "encoder.device", "encoder.options"} <= set(named)
    assert set(named) <= set(known_keys())


def test_the_class_is_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown_encoders.py").write_text(CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    name = "python:shown_encoders:WordsAndColours"
    encoder: Encoder = ClassEncoder(name, {"words": 3})
    texts, cut = encoder.encode_texts(["a dog", "", "a dog and a cat"])
    images, broken = encoder.encode_images([picture(0), b"none"])
    assert (texts.shape, images.shape) == ((3, 16), (2, 16))
    assert (cut.tolist(), broken.tolist()) == ([False, False, True], [False, True])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    described = [ClassEncoder(name, options).describe() for options in ({}, {}, {"seed": 1})]
    assert described[0] == described[1]
    assert described[0]["fingerprint"] != described[2]["fingerprint"]


def test_the_class_runs_as_shown(tmp_path: Path, short_folder: str) -> None:
    drawn = write_demo_corpora(tmp_path / "drawn", captions=300, images=96, pairs=1)
    (tmp_path / "my_encoders.py").write_text(CLASS)
    (words,) = [words for words in COMMANDS if "python:my_encoders" in " ".join(words)]
    values: dict[str, Any] = {
        "align": SMALL_ALIGN,
        "output": {"path": str(tmp_path / "run")},
        "units": {"rows_per_shard": 150},
    }
    replaced = {
        "configs/local.yaml": write_config(tmp_path / "config.yaml", values),
        "text.path=captions.txt": f"text.path={drawn.captions}",
        "image.path=images.parquet": f"image.path={drawn.images}",
    }
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": short_folder,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *(replaced.get(word, word) for word in words[1:])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    manifest = open_manifest(str(tmp_path / "run/dataset"))
    assert (manifest.dimension, manifest.encoder["model"]) == (32, "words and colours")
    assert manifest.encoder["class"] == "python:my_encoders:WordsAndColours"
    assert verify(str(tmp_path / "run/dataset")).problems == ()


def test_embeddings_that_are_written_as_shown_are_a_source(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(WRITER, names)
    path = tmp_path / "captions.parquet"
    values = np.random.default_rng(0).normal(size=(5, 4))
    names["write_embeddings"](path, [f"c{row}" for row in range(5)], values, text=["a"] * 5)
    found = plan(Corpus(path=str(path), modality="text", embedding_column="embedding"), 10)
    assert (found.rows, found.dimension) == (5, 4)
