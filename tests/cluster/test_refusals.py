"""Runs that cannot start: what is said, in one line, and that no data is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster.samples import WIDTH, cloud_values, small_values, unit_cloud, write_embeddings


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
    assert message.startswith(f"{tmp_path}/t.parquet has no column text; it has id, caption (text_")
    jsonl = captions(tmp_path / "t.jsonl", '{"id": "a", "caption": "x"}\n')
    message = fails("encode", small_values(run, text={"path": jsonl}))
    assert message.startswith(f"{jsonl} has no column text; it has caption, id (text_")
    assert sorted(path.name for path in run.iterdir()) == ["lease", "plans", "summary.json"]


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
