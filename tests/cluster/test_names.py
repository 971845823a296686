"""Other pairs of modalities: audio to text from stored embeddings, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.align.registry import create_aligner, load_aligner
from pipeline.cluster.downstream import check_downstream
from pipeline.cluster.fit import _rows
from pipeline.cluster.lifecycle import run_flow
from pipeline.cluster.nightly import nightly
from pipeline.cluster.samples import read_sample
from pipeline.cluster.sources import source_corpus
from pipeline.cluster.watched import Measuring, Size
from pipeline.config import ConfigError, RunConfig
from pipeline.export.card import CardFacts
from pipeline.export.exporting import LAYOUTS, export
from pipeline.names import Names
from pipeline.report.console import Reporter
from pipeline.report.timing import TimingReporter
from pipeline.storage import open_manifest, verify
from tests.cluster.samples import invoke, small_config, small_values, unit_cloud, write_config
from tests.evaluation.samples import write_pairs

AUDIO = {"source": "audio", "target": "text"}
WIDTH = 12


class Heard(TimingReporter):
    """Remembers what was said, beside the titles of the stages."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def write_arrays(folder: Path, name: str, values: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", values)
    ids = "".join(f"{name}-{row:04d}\n" for row in range(len(values)))
    (folder / f"{name}.ids.txt").write_text(ids)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Return a folder with sounds/ and words/, embeddings as .npy."""
    write_arrays(tmp_path / "sounds", "first", unit_cloud(120, WIDTH, -0.4, 1))
    write_arrays(tmp_path / "words", "words", unit_cloud(150, WIDTH, 0.6, 2))
    return tmp_path


def sections(folder: Path) -> dict[str, Any]:
    return {
        "names": AUDIO,
        "text": {"path": str(folder / "sounds")},
        "image": {"path": str(folder / "words")},
        "nightly": {"min_rows": 40},
    }


def test_audio_to_text(local_ray: None, arrays: Path) -> None:
    """Two nights over .npy files, to a dataset, its cards and a report that say audio and text."""
    config = small_config(arrays / "run", **sections(arrays))
    heard = Heard()
    summary = run_flow(config, "nightly", nightly, heard)
    titles = {span.title for span in heard.spans}
    assert {"moments of audio", "moments of text", "planning audio embeddings"} <= titles
    assert {"phases and radii of text", "statistics of the new audio"} <= titles
    assert not [title for title in titles if "image" in title]
    assert "text.path (the audio side) holds embeddings; nothing to encode" in heard.said

    root = str(arrays / "run" / "dataset")
    assert verify(root).problems == ()
    manifest = open_manifest(root)
    assert (manifest.names, manifest.rows) == (Names(**AUDIO), 120)
    assert manifest.source["modality"] == "audio"
    # The sections of the configuration keep their keys.
    stored = json.loads(manifest.to_json())
    assert stored["source"].pop("image_column") == "image"
    del stored["config"]
    assert not re.search(r"\bimages?\b", json.dumps(stored))
    assert "those of audio, moved into the cloud of text" in (Path(root) / "README.md").read_text()
    shown = invoke("versions", "show", root)
    assert {"names.source: audio", "names.target: text", "source.modality: audio"} <= {
        *shown.stdout.splitlines()
    }
    provenance = load_aligner(str(arrays / "run" / "aligner")).provenance
    assert (provenance["source"]["name"], provenance["source"]["rows"]) == ("audio", 120)
    assert (provenance["target"]["name"], provenance["target"]["rows"]) == ("text", 150)
    assert (summary["fit"]["text_rows"], summary["fit"]["image_rows"]) == (120, 150)

    path = write_config(arrays / "c.yaml", small_values(arrays / "run", **sections(arrays)))
    fitted = invoke("fit", path)
    assert fitted.exit_code == 0, fitted.output
    rows = [line.split() for line in fitted.stdout.splitlines()]
    assert [row[3] for row in rows if row[1:2] == ["audio_rows"]] == ["120"]
    assert [row[3] for row in rows if row[1:2] == ["text_rows"]] == ["150"]
    assert [row[3] for row in rows if row[1:2] == ["reused"]] == ["True"]

    pairs = write_pairs(
        arrays / "pairs.npz",
        audio=unit_cloud(90, WIDTH, -0.4, 5),
        text=unit_cloud(90, WIDTH, 0.6, 6),
    )
    out = arrays / "report"
    told = ["--methods", "identity,permuted,centroid,realign", "--no-frontier"]
    evaluated = invoke("evaluate", "geometry", pairs, "--config", path, "--out", str(out), *told)
    assert evaluated.exit_code == 0, evaluated.output
    page = (out / "index.html").read_text()
    assert re.search(r'class="verdict">[^<]* with the texts', page)
    assert "Audio (identity)" in page
    assert "Permuted texts" in page
    assert not re.search(r"\b(images?|captions?)\b", page)

    metrics = json.loads((out / "metrics.json").read_text())
    export(root, str(arrays / "export"), LAYOUTS["hf"](), facts=CardFacts(metrics=metrics))
    card = (arrays / "export" / "README.md").read_text()
    assert "# Substitute text embeddings" in card
    assert "the moved audio against real text embeddings" in card
    assert not re.search(r"\b(images?|captions?|pictures?)\b", card)

    # The next night's sounds lie elsewhere; renamed sides are another version of the same shards.
    write_arrays(arrays / "sounds", "second", unit_cloud(60, WIDTH, 0.9, 3))
    again = Heard()
    second = run_flow(config, "nightly", nightly, again)
    assert second["drift"]["exceeded"][0].startswith("centroid of the new audio")
    (warning,) = [said for said in again.said if said.startswith("warning")]
    assert warning.startswith("warning: the audio has drifted")
    failing = small_config(arrays / "run", **sections(arrays) | {"nightly": {"on_drift": "fail"}})
    write_arrays(arrays / "sounds", "third", unit_cloud(1100, WIDTH, 1.5, 4))
    with pytest.raises(ValueError, match=r"the audio has drifted .*Look at the new audio"):
        run_flow(failing, "nightly", nightly, Heard())


def test_a_dry_run_names_the_sides(arrays: Path) -> None:
    path = write_config(arrays / "c.yaml", small_values(arrays / "run", **sections(arrays)))
    result = invoke("run", path, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["audio", "text"]
    assert set(json.loads(result.stdout.splitlines()[-1])["plan"]) == {"text", "image"}


def test_what_is_measured_for_a_forecast_goes_by_text_and_image(arrays: Path) -> None:
    """Its stages are told apart by these words; `plan` shows them by the names."""
    config = small_config(arrays / "run", **sections(arrays))
    samples = {
        side: read_sample(source_corpus(config, side, Reporter(quiet=True)))
        for side in ("text", "image")
    }
    measuring = Measuring(config, samples, str(arrays / "measured"), 2)
    size = Size(units=2, rows={"text": 8, "image": 8})
    run = measuring._configured(str(arrays / "measured" / "run-1"), size)
    assert (config.names, run.names) == (Names(**AUDIO), Names())


def config_of(folder: Path, **values: Any) -> RunConfig:
    (folder / "captions.txt").write_text("a sound\n")
    return small_config(folder / "run", **{"names": AUDIO, **values})


def refused(config: RunConfig, side: Any = "text") -> str:
    with pytest.raises(ConfigError) as caught:
        source_corpus(config, side, Reporter(quiet=True))
    return str(caught.value)


def test_what_open_clip_would_have_to_encode_is_refused(tmp_path: Path) -> None:
    captions = {"path": str(tmp_path / "captions.txt")}
    said = refused(config_of(tmp_path, text=captions))
    assert said.startswith("text.path (the audio side) holds no embeddings, and the encoder demo")
    assert "give embeddings (text.embedding_column, or .npy files), or an encoder of your" in said
    assert "encoder.model=python:module:Class" in said
    pictures = config_of(tmp_path, image={"path": captions["path"], "format": "parquet"})
    assert refused(pictures, "image").startswith("image.path (the text side) holds no embeddings")
    usual = source_corpus(config_of(tmp_path, names={}, text=captions), "text", Reporter())
    assert usual.name == "text"
    own = config_of(tmp_path, text=captions, encoder={"model": "python:sounds:Encoder"})
    assert source_corpus(own, "text", Reporter(quiet=True)).name == "audio"


def test_the_packaged_world_is_of_text_and_images(tmp_path: Path) -> None:
    said = refused(config_of(tmp_path, text={"path": "demo:captions"}))
    assert said.startswith("text.path (the audio side) is demo:captions, but the packaged world")
    assert not (tmp_path / "run").exists()


def test_a_missing_path_names_the_side(tmp_path: Path) -> None:
    said = "text.path (the audio side) is not set; give it with --set text.path=audio.npy"
    assert refused(config_of(tmp_path)) == said
    assert "captions.txt" in refused(config_of(tmp_path, names={}))


@pytest.mark.parametrize("pairs", [True, False])
def test_downstream_is_about_captions_and_images(tmp_path: Path, pairs: bool) -> None:
    with pytest.raises(ConfigError, match=r"captions .*images: .*which are audio and text"):
        check_downstream(config_of(tmp_path), pairs=pairs)


def test_an_aligner_of_an_earlier_release_is_reported_as_it_is() -> None:
    """Its provenance has the rows beside one another."""
    aligner = create_aligner("centroid")
    aligner.provenance = {"image_rows": 7, "text_rows": 5}
    assert (_rows(aligner, "image"), _rows(aligner, "text")) == (7, 5)
    aligner.provenance = {"target": {"rows": 7}, "source": {"rows": 5}}
    assert (_rows(aligner, "image"), _rows(aligner, "text")) == (7, 5)
