"""Whole runs, from every kind of input to a verified dataset."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.align import load_aligner
from pipeline.cluster.run import summary_rows
from pipeline.storage import embeddings_of, open_manifest, verify
from tests.cluster.conftest import CAPTIONS, Run, World
from tests.cluster.samples import (
    IMAGES,
    SMALL_ALIGN,
    TEXTS,
    WIDTH,
    by,
    cloud_values,
    dataset_rows,
    execute,
    invoke,
    recentring_error,
    small_config,
    unit_cloud,
    write_config,
)

FLOAT16_STEP = 2.5e-4
"""Rounding of values below a half to float16, twice, since both sides of a comparison are."""


def assert_sound(root: Path, rows: int, units: int) -> pa.Table:
    """Verify a dataset, compare its counts and return its rows in order of id."""
    report = verify(str(root))
    assert report.problems == ()
    manifest, table = dataset_rows(root)
    assert (manifest.rows, manifest.units, manifest.quarantined) == (rows, units, {})
    assert sum(receipt.rows for receipt in manifest.receipts) == table.num_rows == rows
    assert {path.name for path in (root / "data").iterdir()} == {
        receipt.path.removeprefix("data/") for receipt in manifest.receipts
    }
    norms = np.linalg.norm(embeddings_of(table), axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=2e-3)
    return table


def test_captions_become_substitutes(caption_run: Run, world: World):
    output, summary = caption_run.output, caption_run.summary
    captions = assert_sound(output / "embeddings" / "text", CAPTIONS, 3)
    assert_sound(output / "embeddings" / "image", 96, 1)
    substitutes = assert_sound(output / "dataset", CAPTIONS, 3)
    assert substitutes.column_names == ["id", "text", "embedding"]
    assert substitutes.select(["id", "text"]) == captions.select(["id", "text"])
    assert sorted(substitutes.column("text").to_pylist()) == sorted(world.captions)

    assert json.loads((output / "summary.json").read_text()) == summary
    flows = {flow["name"]: flow for flow in summary["flows"]}
    assert list(flows) == ["encoding text", "encoding image", "synthesizing"]
    counted = ("rows", "rejected", "units", "reused_units")
    assert [flows["encoding text"][key] for key in counted] == [CAPTIONS, 0, 3, 0]
    assert [flows["encoding image"][key] for key in counted] == [96, 0, 1, 0]
    assert [flows["synthesizing"][key] for key in counted] == [CAPTIONS, 0, 3, 0]
    assert (summary["fit"]["image_rows"], summary["fit"]["text_rows"]) == (96, CAPTIONS)
    assert summary["dataset"] == str(output / "dataset")
    assert [row[0] for row in summary_rows(dict(summary))] == [
        "encoding text",
        "encoding image",
        "fitting anisoalign (rank 4)",
        "synthesizing",
    ]


def test_the_aligner_names_what_it_was_made_of(caption_run: Run):
    aligner = load_aligner(str(caption_run.output / "aligner"))
    manifest = open_manifest(str(caption_run.output / "dataset"))
    assert aligner.fingerprint == caption_run.summary["fit"]["fingerprint"]
    assert manifest.aligner is not None
    assert manifest.aligner["fingerprint"] == aligner.fingerprint
    assert aligner.provenance["encoder"] == manifest.encoder
    assert aligner.provenance["target"].items() >= {"name": "image", "rows": 96}.items()
    assert aligner.provenance["source"].items() >= {"name": "text", "rows": CAPTIONS}.items()
    assert [len(aligner.history[stage]) for stage in ("prior", "refiner")] == [8, 6]
    note = pq.read_schema(caption_run.output / "dataset" / manifest.receipts[0].path).metadata
    assert note[b"anisoalign.aligner"].decode() == aligner.fingerprint
    assert note[b"anisoalign.encoder"].decode() == manifest.encoder["fingerprint"]


def test_substitutes_are_centred_on_the_images(caption_run: Run):
    _, images = dataset_rows(caption_run.output / "embeddings" / "image")
    _, captions = dataset_rows(caption_run.output / "embeddings" / "text")
    _, substitutes = dataset_rows(caption_run.output / "dataset")
    target = torch.from_numpy(embeddings_of(images).copy())
    before, after = recentring_error(captions, target), recentring_error(substitutes, target)
    assert before > 0.2
    assert after < 0.1 * before


def test_the_fused_path_gives_the_stored_paths_rows(caption_run: Run, world: World, tmp_path: Path):
    config = small_config(
        tmp_path / "run",
        text={"path": str(world.jsonl)},
        aligner={"path": str(caption_run.output / "aligner")},
        units={"rows_per_shard": 250},
    )
    summary = execute(config)
    assert summary["fit"] is None
    assert [flow["name"] for flow in summary["flows"]] == ["synthesizing"]
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["dataset", "lease", "plans", "summary.json"]
    fused = assert_sound(tmp_path / "run" / "dataset", CAPTIONS, 3)
    assert fused.column("id").to_pylist() == [f"c{row:03d}" for row in range(CAPTIONS)]
    assert fused.column("text").to_pylist() == list(world.captions)
    _, stored = dataset_rows(caption_run.output / "dataset")
    expected = by("text", stored)
    for caption, embedding in by("text", fused).items():
        np.testing.assert_allclose(embedding, expected[caption], atol=FLOAT16_STEP)
    receipts = open_manifest(str(tmp_path / "run" / "dataset")).receipts
    assert all({"read", "encode", "correct"} <= receipt.seconds.keys() for receipt in receipts)


def test_exact_calibration_recentres_another_corpus(caption_run: Run, world: World, tmp_path: Path):
    chosen = [caption for caption in world.captions if "red" in caption][:25]
    assert len(chosen) == 25
    turns = [[{"from": "gpt", "value": caption}] for caption in chosen]
    ids = [f"r{row}" for row in range(25)]
    columns = {"key": ids, "caption": chosen, "turns": turns, "weight": range(25)}
    pq.write_table(pa.table(columns), tmp_path / "red.parquet")
    text = {
        "path": str(tmp_path / "red.parquet"),
        "id_column": "key",
        "text_column": "caption",
        "passed_through": ["turns", "weight"],
    }
    config = small_config(
        tmp_path / "run",
        text=text,
        aligner={"path": str(caption_run.output / "aligner")},
        calibration="exact",
        units={"rows_per_shard": 10},
    )
    summary = execute(config)
    table = assert_sound(tmp_path / "run" / "dataset", 25, 3)
    assert table.column_names == ["id", "text", "embedding", "turns", "weight"]
    rows = {row["id"]: row for row in table.drop_columns(["embedding"]).to_pylist()}
    for row, (name, caption, turn) in enumerate(zip(ids, chosen, turns, strict=True)):
        assert rows[name] == {"id": name, "text": caption, "turns": turn, "weight": row}

    _, images = dataset_rows(caption_run.output / "embeddings" / "image")
    target = torch.from_numpy(embeddings_of(images).copy())
    _, captions = dataset_rows(tmp_path / "run" / "embeddings" / "text")
    fitted = load_aligner(str(caption_run.output / "aligner"))
    loose = fitted.transform(torch.from_numpy(embeddings_of(captions).copy()))
    without = float((loose.mean(dim=0) - target.mean(dim=0)).norm())
    assert recentring_error(table, target) < 0.2 * without

    # Captions were encoded once: the substitutes are made from what was stored then.
    receipts = open_manifest(str(tmp_path / "run" / "dataset")).receipts
    assert all("encode" not in receipt.seconds for receipt in receipts)
    again = execute(config)
    assert [flow["reused_units"] for flow in again["flows"]] == [3]
    assert again["flows"][0]["version"] == summary["flows"][0]["version"]


def test_embeddings_made_elsewhere(cloud_run, clouds: Path):
    output, summary = cloud_run
    assert [flow["name"] for flow in summary["flows"]] == ["synthesizing"]
    assert not (output / "embeddings").exists()
    table = assert_sound(output / "dataset", TEXTS, 3)
    given = pq.read_table(clouds / "texts.parquet")
    assert table.select(["id", "text"]) == given.select(["id", "text"]).cast(
        table.select(["id", "text"]).schema
    )
    aligner = load_aligner(str(output / "aligner"))
    # The reference: the aligner on plain tensors.
    expected = aligner.transform(torch.from_numpy(unit_cloud(TEXTS, WIDTH, -0.4, 1)))
    np.testing.assert_allclose(embeddings_of(table), expected.numpy(), atol=1e-3)
    image = torch.from_numpy(unit_cloud(IMAGES, WIDTH, 0.6, 2))
    assert recentring_error(table, image) < 0.02
    manifest = open_manifest(str(output / "dataset"))
    assert manifest.encoder == {"model": "unknown (embeddings given)", "fingerprint": ""}


def test_array_files_with_ids(local_ray: None, clouds: Path, tmp_path: Path):
    """From .npy with ids on the text side, derived ids on the image side, by the command line."""
    texts = unit_cloud(TEXTS, WIDTH, -0.4, 1)
    np.save(tmp_path / "texts.npy", texts)
    np.save(tmp_path / "images.npy", unit_cloud(IMAGES, WIDTH, 0.6, 2).astype(np.float16))
    names = [f"row {row:03d} ü" for row in range(TEXTS)]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    values = cloud_values(
        clouds,
        tmp_path / "run",
        text={
            "path": str(tmp_path / "texts.npy"),
            "ids_path": str(tmp_path / "names.txt"),
            "embedding_column": None,
        },
        image={"path": str(tmp_path / "images.npy"), "embedding_column": None},
        align={"method": "realign"},
        output={"dtype": "float32"},
    )
    result = invoke("run", write_config(tmp_path / "run.yaml", values), "--json", "-q")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    table = assert_sound(tmp_path / "run" / "dataset", TEXTS, 3)
    assert table.column("id").to_pylist() == names
    assert table.column("text").null_count == TEXTS
    aligner = load_aligner(str(tmp_path / "run" / "aligner"))
    expected = aligner.transform(torch.from_numpy(texts)).numpy()
    np.testing.assert_allclose(embeddings_of(table), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["identity", "centroid", "anisoalign-init"])
def test_every_method_fits_by_the_same_flow(
    local_ray: None, clouds: Path, tmp_path: Path, method: str
):
    """The fit from merged states equals the fit on whole tensors."""
    from pipeline.align import create_aligner
    from pipeline.cluster.fit import fit
    from tests.cluster.samples import cloud_config

    config = cloud_config(clouds, tmp_path / "run", align={"method": method})
    report = execute(config, fit)
    assert (report.method, report.image_rows, report.text_rows) == (method, IMAGES, TEXTS)
    image, text = (
        torch.from_numpy(unit_cloud(*arguments))
        for arguments in ((IMAGES, WIDTH, 0.6, 2), (TEXTS, WIDTH, -0.4, 1))
    )
    whole = create_aligner(method, config.align, config.seed).fit(image, text)
    merged = load_aligner(report.path)
    torch.testing.assert_close(merged.transform(text), whole.transform(text), atol=2e-5, rtol=0)


def test_output_needs_no_ray_to_read(cloud_run):
    """Hugging Face datasets, DuckDB and pandas open the output of a run, Ray never imported."""
    output, _ = cloud_run
    program = """
import glob, sys
import datasets, duckdb, pandas
datasets.disable_progress_bars()
files = sorted(glob.glob(sys.argv[1] + "/data/*.parquet"))
loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=sys.argv[2])
counted = duckdb.sql(f"select count(*), any_value(len(embedding)) from read_parquet({files})")
frame = pandas.concat(pandas.read_parquet(file) for file in files)
assert "ray" not in sys.modules
print(len(loaded), len(loaded[0]["embedding"]), *counted.fetchall()[0], len(frame))
"""
    cache = output.parent / "cache"
    done = subprocess.run(
        [sys.executable, "-c", program, str(output / "dataset"), str(cache)],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(n) for n in (TEXTS, WIDTH, TEXTS, WIDTH, TEXTS)]


def test_small_align_is_a_valid_section():
    assert small_config(Path("x"), align=SMALL_ALIGN).align.rank == 4
