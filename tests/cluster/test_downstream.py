"""The downstream evaluation end to end on Ray: trials, resuming, the report, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.downstream import QUICK_SETTINGS, evaluate_downstream
from pipeline.cluster.session import ray_session
from pipeline.config import ConfigError, RunConfig, load_config, parse_config
from pipeline.demo.telling import COLOURS
from pipeline.evaluation.downstream.captioned_pairs import read_captioned_pairs
from pipeline.report.console import Reporter
from tests.cluster.samples import invoke, write_config
from tests.documents import ROOT

WIDTH = 32


def world_values(output: Path, **downstream: Any) -> dict[str, Any]:
    """Return a configuration of the packaged world in the small."""
    return {
        "text": {"path": "demo:captions"},
        "image": {"path": "demo:images"},
        "output": {"path": str(output)},
        "units": {"rows_per_shard": 512},
        "demo": {"captions": 1000, "images": 500, "pairs": 120},
        "downstream": {
            "seeds": 1,
            "methods": ["identity", "realign"],
            "regimes": ["text-only", "real-instructions"],
            "captions": 500,
            "real_images": 20,
            "test_images": 120,
            **downstream,
        },
    }


@pytest.fixture(scope="module")
def evaluated(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return the output of a small evaluation of the packaged world, and its results."""
    output = tmp_path_factory.mktemp("downstream") / "run"
    config = parse_config(world_values(output))
    with ray_session(config):
        return output, evaluate_downstream(config, Reporter(quiet=True))


def test_every_method_and_reference_is_read_on_real_images(evaluated: tuple[Path, Any]):
    output, found = evaluated
    assert set(found["marks"]) == {"text-only", "real-instructions"}
    for marks in found["marks"].values():
        assert set(marks) == {"blind", "real-images", "identity", "realign"}
        for values in marks.values():
            assert {"colour", "shape", "size", "relation", "count", "background"} <= set(values)
            assert all(0 <= value <= 1 for value in values.values())
    text_only = found["marks"]["text-only"]
    # Backgrounds are learnt first: even this little training reads them from real images.
    assert text_only["real-images"]["background"] > text_only["blind"]["background"] + 0.2
    folder = output / "downstream"
    assert Path(found["report"]) == folder / "index.html"
    assert (folder / "figures" / "downstream.png").is_file()
    written = json.loads((folder / "downstream.json").read_text())
    assert written["marks"] == found["marks"]


def test_trials_that_are_there_are_kept(evaluated: tuple[Path, Any]):
    output, found = evaluated
    trials = sorted(output.glob("downstream/trials/*/*.json"))
    assert len(trials) == 4
    damaged, kept = trials[0], trials[1:]
    damaged.write_text("{")
    before = {path: path.stat().st_mtime_ns for path in kept}
    config = parse_config(world_values(output))
    with ray_session(config):
        again = evaluate_downstream(config, Reporter(quiet=True))
    assert again["reused_trials"] == 3
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    # The same seed, data and settings: the trial that ran again gave the same marks.
    assert again["marks"] == found["marks"]


def test_other_settings_are_other_trials(evaluated: tuple[Path, Any]):
    output, _ = evaluated
    config = parse_config(world_values(output, test_images=100, methods=["identity"]))
    with ray_session(config):
        other = evaluate_downstream(config, Reporter(quiet=True))
    assert other["reused_trials"] == 0
    assert len(list(output.glob("downstream/trials/*"))) == 2


def captioned_rows(rows: int = 240) -> dict[str, Any]:
    """Return paired embeddings whose captions name the colours that they are made of."""
    generator = np.random.default_rng(0)
    codes = generator.standard_normal((len(COLOURS), WIDTH))
    named = generator.integers(0, len(COLOURS), rows)
    text = codes[named] + 0.2 * generator.standard_normal((rows, WIDTH)) + 1.0
    image = codes[named] + 0.2 * generator.standard_normal((rows, WIDTH)) - 1.0
    return {
        "image": image.astype(np.float32),
        "text": text.astype(np.float32),
        "caption": [f"a {COLOURS[one]} thing" for one in named],
    }


def write_rows(path: Path, rows: dict[str, Any]) -> Path:
    """Write captioned pairs as .npz or Parquet, by the path's ending."""
    if path.suffix == ".npz":
        np.savez(path, **{**rows, "caption": np.array(rows["caption"])})
    else:
        lists = {name: pa.array(list(rows[name])) for name in ("image", "text")}
        pq.write_table(pa.table({**lists, "caption": rows["caption"]}), path)
    return path


def test_files_of_pairs_take_the_place_of_the_world(local_ray: None, tmp_path: Path):
    rows = captioned_rows()
    settings = {
        "seeds": 1,
        "methods": ["identity", "centroid"],
        "regimes": ["text-only"],
        "captions": 80,
        "real_images": 20,
    }
    config = parse_config({"output": {"path": str(tmp_path / "run")}, "downstream": settings})
    found = []
    for name in ("pairs.npz", "pairs.parquet"):
        pairs = read_captioned_pairs(str(write_rows(tmp_path / name, rows)))
        with ray_session(config):
            found.append(evaluate_downstream(config, Reporter(quiet=True), pairs))
    first, second = found
    assert set(first["marks"]["text-only"]["centroid"]) >= {"presence", "captioning", "average"}
    assert second["reused_trials"] == 4  # the same rows, whatever the file's format
    assert first["marks"] == second["marks"]


def test_the_command_and_its_refusals(tmp_path: Path):
    values = world_values(tmp_path / "run")
    config = write_config(tmp_path / "c.yaml", values)
    refused = invoke("evaluate", "downstream", "--config", str(config), "--set", "demo.images=10")
    assert refused.exit_code == 2
    assert "demo.images is 10" in refused.stderr
    own = invoke("evaluate", "downstream", "--config", str(config), "--set", "text.path=mine.txt")
    assert own.exit_code == 2
    assert "give a file of embeddings and captions as PAIRS" in own.stderr
    far = invoke("evaluate", "downstream", "--config", str(config), "--set", "output.path=s3://b/c")
    assert far.exit_code == 2
    assert "give output.path a local folder" in far.stderr
    missing = invoke("evaluate", "downstream", "nothing.npz", "--config", str(config))
    assert missing.exit_code == 1
    assert "cannot read nothing.npz" in missing.stderr
    unknown = invoke(
        "evaluate", "downstream", "--config", str(config), "--set", "downstream.methods=[none]"
    )
    assert unknown.exit_code == 2
    assert "downstream.methods" in unknown.stderr


def test_the_packaged_configuration_is_the_default_and_fits_its_world():
    config = load_config(ROOT / "configs" / "downstream-demo.yaml")
    assert config.downstream == RunConfig().downstream
    quick = load_config(ROOT / "configs" / "downstream-demo.yaml", QUICK_SETTINGS)
    assert quick.downstream.seeds == 2
    with pytest.raises(ConfigError, match="real_images"):
        load_config(ROOT / "configs" / "downstream-demo.yaml", ["downstream.real_images=0"])
