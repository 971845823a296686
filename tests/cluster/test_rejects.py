"""Rows and inputs that cannot be used: what is quarantined, what is said, what is kept."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import open_manifest, verify
from tests.cluster.conftest import Run, World
from tests.cluster.samples import (
    TEXTS,
    WIDTH,
    cloud_values,
    dataset_rows,
    error_line,
    invoke,
    quarantined_rows,
    small_values,
    unit_cloud,
    write_config,
    write_embeddings,
)


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


def rejected_rows(root: Path) -> list[tuple[str, int, str]]:
    """Return (id, row in its unit, reason) of every quarantined row; all keep their content."""
    tables = [pq.read_table(path) for path in sorted((root / "quarantine").glob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    assert all(row["content"] for row in rows)
    return sorted((row["id"], row["row"], row["reason"]) for row in rows)


def test_rows_that_cannot_be_used_are_quarantined_with_their_reason(
    cloud_run, clouds: Path, tmp_path: Path
):
    """In three units: ids repeated in a unit and across units, NaN, zero and narrow embeddings."""
    values = list(unit_cloud(TEXTS, WIDTH, -0.4, 1))
    ids = [f"text-{row:04d}" for row in range(TEXTS)]
    ids[7] = ids[3]  # in one unit: the later row goes
    ids[60], ids[110] = ids[5], ids[5]  # across units: only the first unit's row stays
    ids[119] = ""
    values[10] = np.full(WIDTH, np.nan, np.float32)
    values[70] = np.zeros(WIDTH, np.float32)
    values[111] = np.ones(WIDTH - 1, np.float32)
    values[112] = np.full(WIDTH, np.inf, np.float32)
    table = {
        "id": ids,
        "text": ["x"] * TEXTS,
        "embedding": pa.array(values, pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), tmp_path / "texts.parquet")
    values_of_run = cloud_values(
        clouds,
        tmp_path / "run",
        text={"path": str(tmp_path / "texts.parquet")},
        aligner={"path": str(cloud_run[0] / "aligner")},
        rejects={"max_share": 0.1},
    )
    result = invoke("synthesize", write_config(tmp_path / "c.yaml", values_of_run), "--json", "-q")
    assert result.exit_code == 0, result.output
    (flow,) = json.loads(result.stdout.splitlines()[-1])["flows"]
    assert (flow["rows"], flow["rejected"]) == (TEXTS - 8, 8)
    root = tmp_path / "run/dataset"
    assert rejected_rows(root) == [
        ("", 19, "missing_id"),
        ("text-0003", 7, "duplicate_id"),
        ("text-0005", 10, "duplicate_id"),
        ("text-0005", 10, "duplicate_id"),
        ("text-0010", 10, "not_finite"),
        ("text-0070", 20, "zero_embedding"),
        ("text-0111", 11, "wrong_dimension"),
        ("text-0112", 12, "not_finite"),
    ]
    _, kept = dataset_rows(root)
    unusable = {10, 60, 70, 110, 111, 112, 119, 7}
    assert sorted(kept.column("id").to_pylist()) == sorted(
        name for row, name in enumerate(ids) if row not in unusable
    )
    manifest = open_manifest(str(root))
    assert manifest.quarantined == {
        "duplicate_id": 3,
        "missing_id": 1,
        "not_finite": 2,
        "wrong_dimension": 1,
        "zero_embedding": 1,
    }
    assert Counter(reason for _, _, reason in quarantined_rows(root)) == manifest.quarantined
    assert verify(str(root)).problems == ()


def test_too_many_rejects_fail_the_run_and_keep_the_last_version(
    cloud_run, clouds: Path, tmp_path: Path, fails: Callable[..., str]
):
    output = Path(shutil.copytree(cloud_run[0], tmp_path / "run"))
    root = str(output / "dataset")
    before = open_manifest(root)
    values = unit_cloud(TEXTS, WIDTH, -0.4, 1)
    values[[4, 5, 90]] = 0
    path = write_embeddings(tmp_path / "texts.parquet", "text", values)
    message = fails("synthesize", cloud_values(clouds, output, text={"path": str(path)}))
    assert message == (
        f"3 of 120 rows of {path} cannot be used (3 zero_embedding), more than "
        f"rejects.max_share=0.01 allows; they stand in {root}/quarantine; mend the input or raise "
        "the limit"
    )
    assert Counter(quarantined_rows(Path(root))).total() == 3
    assert open_manifest(root) == before
    assert verify(root).problems == ()

    message = fails("fit", cloud_values(clouds, output, text={"path": str(path)}))
    assert message.startswith(f"3 of 120 embeddings of {path} cannot be used")
    assert "rejects.max_share=0.01" in message


def test_captions_that_are_not_utf8(
    caption_run: Run, world: World, tmp_path: Path, fails: Callable[..., str]
):
    lines = [caption.encode() for caption in world.captions[:60]]
    lines[17], lines[41], lines[58] = b"caf\xe9", b"\xff\xfe", b"  "
    (tmp_path / "captions.txt").write_bytes(b"\n".join(lines))
    values = small_values(
        tmp_path / "run",
        text={"path": str(tmp_path / "captions.txt")},
        aligner={"path": str(caption_run.output / "aligner")},
    )
    message = fails("run", values)
    assert "3 of 60 rows" in message
    assert "2 not_utf8, 1 empty" in message
    assert f"{tmp_path}/run/dataset/quarantine" in message
    assert not (tmp_path / "run/dataset/current.json").exists()

    # Once they are allowed, nothing has to be encoded again.
    config = write_config(tmp_path / "c.yaml", values)
    result = invoke("run", config, "--set", "rejects.max_share=0.05", "--json", "-q")
    assert result.exit_code == 0, result.output
    (flow,) = json.loads(result.stdout.splitlines()[-1])["flows"]
    assert (flow["rows"], flow["rejected"], flow["units"], flow["reused_units"]) == (57, 3, 2, 2)
    assert verify(str(tmp_path / "run/dataset")).problems == ()


def test_undecodable_images_are_quarantined(local_ray: None, world: World, tmp_path: Path):
    table = pq.read_table(world.images).slice(0, 20)
    pictures = table.column("image").to_pylist()
    pictures[3], pictures[11], pictures[15] = b"no picture", pictures[11][:200], None
    broken = table.set_column(1, "image", pa.array(pictures, pa.binary()))
    pq.write_table(broken, tmp_path / "images.parquet")
    values = small_values(
        tmp_path / "run",
        image={"path": str(tmp_path / "images.parquet")},
        rejects={"max_share": 0.2},
    )
    result = invoke("encode", write_config(tmp_path / "c.yaml", values), "--json", "-q")
    assert result.exit_code == 0, result.output
    (flow,) = json.loads(result.stdout.splitlines()[-1])["flows"]
    assert (flow["rows"], flow["rejected"]) == (17, 3)
    root = tmp_path / "run/embeddings/image"
    found = [(row, reason) for _, row, reason in quarantined_rows(root)]
    assert found == [(row, "undecodable_image") for row in (3, 11, 15)]


def captions(path: Path, content: str = "a\nb\n") -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_inputs_that_hold_nothing(tmp_path: Path, fails: Callable[..., str]):
    run = tmp_path / "run"
    empty = captions(tmp_path / "empty.txt", "")
    assert fails("encode", small_values(run, text={"path": empty})) == f"{empty} is empty"
    lost = str(tmp_path / "lost.txt")
    message = fails("encode", small_values(run, text={"path": lost}))
    assert message == f"there is no file or folder {lost}"
    pq.write_table(pa.table({"id": ["a"], "caption": ["x"]}), tmp_path / "t.parquet")
    message = fails("encode", small_values(run, text={"path": str(tmp_path / "t.parquet")}))
    assert message == f"{tmp_path}/t.parquet has no column text; it has id, caption"
    jsonl = captions(tmp_path / "t.jsonl", '{"id": "a", "caption": "x"}\n')
    message = fails("encode", small_values(run, text={"path": jsonl}))
    assert message == f"{jsonl} has no column text; it has caption, id"
    assert not run.exists()


def test_paths_that_are_not_set(tmp_path: Path, fails: Callable[..., str]):
    values = small_values(tmp_path / "run")
    assert "text.path is not set; give it with --set text.path=" in fails("run", values, 2)
    assert "neither text.path nor image.path is set" in fails("encode", values, 2)
    values = small_values(tmp_path / "run", text={"path": captions(tmp_path / "c.txt")})
    assert "image.path is not set" in fails("run", values, 2)
    values = small_values(tmp_path / "run", text={"path": "demo:pictures"})
    assert "known are demo:captions and demo:images" in fails("run", values, 2)
    values = small_values(tmp_path / "run", text={"path": "demo:images"})
    assert "the demo's text side is demo:captions" in fails("run", values, 2)


def test_steps_that_were_not_run(tmp_path: Path, fails: Callable[..., str]):
    values = small_values(tmp_path / "run", text={"path": captions(tmp_path / "c.txt")})
    assert "run `anisoalign encode` with this configuration first" in fails("fit", values)
    message = fails("synthesize", values)
    assert f"{tmp_path}/run/aligner" in message


@pytest.mark.parametrize("below", ["/dev/null/x", "FILE/x", "FILE"])
def test_outputs_that_cannot_be_written(
    tmp_path: Path, clouds: Path, fails: Callable[..., str], below: str
):
    path = below.replace("FILE", captions(tmp_path / "file"))
    values = small_values(Path(path), text={"path": captions(tmp_path / "c.txt")})
    message = fails("encode", values)
    assert message.startswith("cannot write ")
    assert path in message
    assert path in fails("fit", cloud_values(clouds, Path(path)))
    assert (tmp_path / "file").read_text() == "a\nb\n"


def test_encoders_that_do_not_exist(tmp_path: Path, fails: Callable[..., str]):
    text = {"path": captions(tmp_path / "c.txt")}

    def message(**encoder: str) -> str:
        return fails("encode", small_values(tmp_path / "run", text=text, encoder=encoder))

    unknown = message(model="ViT-B-23", pretrained="openai")
    assert "open_clip knows no architecture 'ViT-B-23'" in unknown
    assert "ViT-B-32" in unknown
    assert "encoder.pretrained: ViT-B-32 needs weights" in message(model="ViT-B-32")
    assert "neither a file nor a known tag" in message(model="ViT-B-32", pretrained="opena")
    assert "no folder /nowhere" in message(model="local-dir:/nowhere")


@pytest.mark.parametrize(
    ("align", "code", "said"),
    [
        ({"rank": 3}, 2, "align.rank must be auto or an even number"),
        ({"rank": 0}, 2, "align.rank"),
        (
            {"rank": WIDTH + 2},
            1,
            f"align.rank is {WIDTH + 2}, but the embeddings have only 12 dimensions",
        ),
        ({"method": "procrustes"}, 2, "align.method"),
        ({"prior": {"steps": -1}}, 2, "align.prior.steps must not be negative, not -1"),
    ],
)
def test_settings_that_cannot_be(
    clouds: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    align: dict[str, Any],
    code: int,
    said: str,
):
    assert said in fails("fit", cloud_values(clouds, tmp_path / "run", align=align), code)


def test_fewer_images_than_the_rank(clouds: Path, tmp_path: Path, fails: Callable[..., str]):
    path = write_embeddings(tmp_path / "few.parquet", "image", unit_cloud(3, WIDTH, 0.6, 2))
    values = cloud_values(clouds, tmp_path / "run", image={"path": str(path)})
    message = fails("fit", values)
    assert "rank" in message
    assert "3" in message


def test_widths_that_differ(cloud_run, clouds: Path, tmp_path: Path, fails: Callable[..., str]):
    wide = write_embeddings(tmp_path / "wide.parquet", "text", unit_cloud(60, WIDTH + 4, 0.1, 3))
    values = cloud_values(clouds, tmp_path / "run", text={"path": str(wide)})
    message = fails("fit", values)
    assert message.startswith(f"image embeddings have width {WIDTH} ({clouds}/images.parquet)")
    assert f"text embeddings {WIDTH + 4} ({wide})" in message
    values["aligner"] = {"path": str(cloud_run[0] / "aligner")}
    message = fails("synthesize", values)
    assert f"was fitted on {WIDTH}-wide embeddings" in message
    assert f"the text's are {WIDTH + 4}-wide" in message
    # A width that has to be found out from the encoder.
    values = small_values(
        tmp_path / "run",
        text={"path": captions(tmp_path / "c.txt")},
        aligner={"path": str(cloud_run[0] / "aligner")},
    )
    assert "the text's are 128-wide, of demo" in fails("synthesize", values)
    values["calibration"] = "exact"
    message = fails("synthesize", values)
    assert "128" in message
    assert f"{WIDTH}" in message


def test_unreadable_files_can_be_skipped(
    cloud_run, clouds: Path, tmp_path: Path, fails: Callable[..., str]
):
    folder = tmp_path / "texts"
    folder.mkdir()
    write_embeddings(folder / "a.parquet", "text", unit_cloud(30, WIDTH, -0.4, 1))
    (folder / "b.parquet").write_bytes(b"PAR1 no")
    values = cloud_values(
        clouds,
        tmp_path / "run",
        text={"path": str(folder)},
        aligner={"path": str(cloud_run[0] / "aligner")},
    )
    assert f"{folder}/b.parquet is not a readable Parquet file" in fails("run", values)
    config = write_config(tmp_path / "c.yaml", values)
    result = invoke("run", config, "--set", "rejects.unreadable_files=skip", "-q")
    assert result.exit_code == 0, result.output
    manifest = open_manifest(str(tmp_path / "run/dataset"))
    assert manifest.rows == 30
    assert [one["path"] for one in manifest.skipped_files] == [f"{folder}/b.parquet"]
