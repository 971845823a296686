"""A class of the user's own as the encoder, through the whole flow in Ray's workers."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import open_manifest, verify
from tests.cluster.conftest import CAPTIONS, World
from tests.cluster.samples import dataset_rows, small_values, write_config

MODULE = '''
"""Embeddings of the bytes that captions and pictures are made of."""

import hashlib
import os
from pathlib import Path

import numpy as np


class Bytes:
    def __init__(self, *, weights, calls, width=8, wrong=None):
        self.content = Path(weights).read_bytes()
        self.directions = np.random.default_rng(int(self.content)).normal(size=(256, width))
        self.calls, self.wrong = Path(calls), wrong

    def describe(self):
        fingerprint = hashlib.sha256(self.content).hexdigest()
        width = self.directions.shape[1]
        said = {"model": "bytes", "fingerprint": fingerprint, "dimension": width}
        return {**said, "context_length": None}

    def encode_texts(self, texts):
        with self.calls.open("a") as file:
            file.write(f"{os.getpid()} {len(texts)}\\n")
        embeddings = self.embed([text.encode() for text in texts])
        if self.wrong == "shape":
            embeddings = embeddings[:, 1:]
        return embeddings, np.zeros(len(texts), bool)

    def encode_images(self, images):
        return self.embed(images), np.array([not one.startswith(b"\\x89PNG") for one in images])

    def embed(self, contents):
        counts = [np.bincount(np.frombuffer(one, np.uint8), minlength=256) for one in contents]
        return np.stack(counts) @ self.directions
'''

PROGRAM = """
import json, sys
from pathlib import Path
import ray
folder = Path(sys.argv[1])
quiet = {"include_dashboard": False, "log_to_driver": False}
# What `ray job submit --working-dir` gives a job.
along = {"working_dir": str(folder / "modules")}
ray.init(num_cpus=2, _temp_dir=sys.argv[2], runtime_env=along, **quiet)
from pipeline.cluster.encode import encode
from pipeline.cluster.fit import fit
from pipeline.cluster.nightly import nightly
from pipeline.cluster.run import run
from pipeline.cluster.session import ray_session
from pipeline.cluster.synthesize import synthesize
from pipeline.config import load_config
from pipeline.report.console import Reporter
from pipeline.storage import open_manifest

def do(flow, *settings):
    config = load_config(folder / "config.yaml", settings)
    try:
        with ray_session(config):
            done = flow(config, Reporter(quiet=True))
    except ValueError as error:
        return {"error": str(error)}
    return {"done": done} if isinstance(done, dict) else {}

def reused(step):
    return [[one["units"], one["reused_units"]] for one in step["done"]["flows"]]

said = {"first": reused(do(run)), "again": reused(do(run))}
said["encoder"] = open_manifest(str(folder / "run/dataset")).encoder
with (folder / "captions.txt").open("a") as file:
    file.write("".join(f"a new caption {row}\\n" for row in range(100)))
night = do(nightly)
said["night"] = {name: night["done"][name] for name in ("added", "kept", "removed")}
(folder / "weights").write_text("2")
said["fit of others"] = do(fit)
said["night of others"] = do(nightly)
said["anew"] = reused(do(run))
said["other options"] = do(fit, "encoder.options.width=6")
said["wrong"] = do(encode, "encoder.options.wrong=shape", "units.max_attempts=1",
                   f"output.path={folder / 'wrong'}")
for name in ("python:own_bytes:Lost", "python:own_lost:Bytes"):
    said[name] = do(encode, f"encoder.model={name}")
Path(sys.argv[1], "answer.json").write_text(json.dumps(said))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def answer(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and what the program said of runs with the class; on a Ray of its own."""
    folder = tmp_path_factory.mktemp("own")
    modules = folder / "modules"
    modules.mkdir()
    (modules / "own_bytes.py").write_text(MODULE)
    (folder / "weights").write_text("1")
    (folder / "captions.txt").write_text("".join(f"{one}\n" for one in world.captions))
    values = small_values(
        folder / "run",
        text={"path": str(folder / "captions.txt")},
        image={"path": str(world.images)},
        encoder={
            "model": "python:own_bytes:Bytes",
            "options": {"weights": str(folder / "weights"), "calls": str(folder / "calls")},
        },
        units={"rows_per_shard": 200},
        nightly={"on_drift": "warn"},
    )
    write_config(folder / "config.yaml", values)
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("RAY_ADDRESS", None)
    # Not below tmp_path: the path of a Unix socket may have 107 bytes.
    short = os.environ["RAY_TMPDIR"]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), short],
        env=environment,
        cwd=folder,
        check=True,
        timeout=500,
    )
    return folder, json.loads((folder / "answer.json").read_text())


def test_it_runs_to_a_verified_dataset(answer: tuple[Path, dict[str, Any]]) -> None:
    folder, said = answer
    assert verify(str(folder / "run/dataset")).problems == ()
    manifest, table = dataset_rows(folder / "run/dataset")
    assert manifest.rows == len(table) == CAPTIONS + 100
    assert manifest.dimension == 8
    assert said["encoder"] == {
        "model": "bytes",
        "fingerprint": said["encoder"]["fingerprint"],
        "dimension": 8,
        "context_length": None,
        "class": "python:own_bytes:Bytes",
        "options": {"weights": str(folder / "weights"), "calls": str(folder / "calls")},
    }
    made = open_manifest(str(folder / "run/embeddings/text"))
    assert made.kind == "text-embeddings"
    # Each caption once by each of the two fingerprints, and once by the one that is wrong.
    calls = [line.split() for line in (folder / "calls").read_text().splitlines()]
    assert sum(int(rows) for _, rows in calls) == 3 * (CAPTIONS + 100)


def test_what_was_made_is_kept_until_the_fingerprint_changes(
    answer: tuple[Path, dict[str, Any]],
) -> None:
    _, said = answer
    assert [reused for _, reused in said["first"]] == [0, 0, 0]
    assert all(units == reused for units, reused in said["again"])
    assert said["night"] == {"added": 1, "kept": 3, "removed": 0}
    assert all(reused == 0 for _, reused in said["anew"])


def test_a_class_that_is_another_by_now_is_noticed(answer: tuple[Path, dict[str, Any]]) -> None:
    _, said = answer
    assert "were made by another python:own_bytes:Bytes" in said["fit of others"]["error"]
    assert "use the same encoder for both" in said["night of others"]["error"]
    assert "were made from another encoder.options" in said["other options"]["error"]


def test_what_is_wrong_with_it_is_said(answer: tuple[Path, dict[str, Any]]) -> None:
    _, said = answer
    assert (
        "encode_texts of encoder.model python:own_bytes:Bytes returned embeddings of shape "
        "(200, 7) for 200 rows; with the dimension that it describes it must be (200, 8)"
    ) in said["wrong"]["error"]
    lost = said["python:own_bytes:Lost"]["error"]
    assert lost == "encoder.model: own_bytes has no class Lost"
    assert said["python:own_lost:Bytes"]["error"].startswith(
        "encoder.model: a worker finds no module own_lost, of python:own_lost:Bytes; it must be on"
    )
