"""Rows and inputs that cannot be used: what is quarantined, what is said, what is kept."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    by,
    cloud_values,
    dataset_rows,
    invoke,
    quarantined_rows,
    small_values,
    unit_cloud,
    write_config,
    write_embeddings,
)


@dataclass(frozen=True, order=True)
class Quarantined:
    """What has to stand in quarantine of a row."""

    id: str
    reason: str
    content: bytes


DAMAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "empty": lambda row: {**row, "text": " \t"},
    "too_long": lambda row: {**row, "text": "é" * 40_000},
    "control_characters": lambda row: {**row, "text": f"{row['text']}\x00\x1b[2J"},
    "missing_id": lambda row: {**row, "id": ""},
    "unsafe_id": lambda row: {**row, "id": f"../../etc/{row['id']}"},
    "not_finite": lambda row: {**row, "embedding": [float("nan"), *row["embedding"][1:]]},
    "zero_embedding": lambda row: {**row, "embedding": [0.0] * len(row["embedding"])},
    "wrong_dimension": lambda row: {**row, "embedding": row["embedding"][1:]},
    "undecodable_image": lambda row: {**row, "image": row["image"][: len(row["image"]) // 2]},
}
"""What is done to a row by the reason it is then rejected for; see also `plant`."""


def plant(
    rows: list[dict[str, Any]], unit_rows: int, kinds: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return rows of which a tenth, at seeded places, is damaged, and which reason each has.

    Each unit's first row stays: copies of its id are "inside" its unit, of the very first "across".
    """
    draws = np.random.default_rng(7).permutation(len(rows))
    places = [int(row) for row in draws if row % unit_rows]
    planted = list(rows)
    reasons = {}
    for at in range(len(rows) // 10):
        kind = kinds[at % len(kinds)]
        row = next(one for one in places if kind != "across" or one >= unit_rows)
        places.remove(row)
        if kind == "inside":
            planted[row] = {**rows[row], "id": rows[row - row % unit_rows]["id"]}
        elif kind == "across":
            planted[row] = {**rows[row], "id": rows[0]["id"]}
        elif kind in DAMAGES:
            planted[row] = DAMAGES[kind](rows[row])
        reasons[row] = "duplicate_id" if kind in {"inside", "across"} else kind
    assert len({row // unit_rows for row in reasons}) > 1, "damage is in several units"
    assert set(reasons.values()) == {
        "duplicate_id" if kind in {"inside", "across"} else kind for kind in kinds
    }
    return planted, reasons


def write_lines(
    path: Path, rows: Sequence[dict[str, Any]], reasons: Mapping[int, str]
) -> list[Quarantined]:
    """Write JSON lines, some no JSON or no UTF-8; returns what has to be in quarantine."""
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    expected = []
    for row, reason in reasons.items():
        if reason == "not_utf8":
            lines[row] = lines[row].replace(b'"text": "', b'"text": "caf\xe9 ')
        elif reason == "malformed":
            lines[row] = lines[row][:-2]
        name = "" if reason in {"not_utf8", "malformed"} else rows[row]["id"]
        expected.append(Quarantined(name, reason, lines[row][: 64 * 1024]))
    path.write_bytes(b"\n".join(lines))
    return expected


def write_table(
    path: Path, rows: Sequence[dict[str, Any]], reasons: Mapping[int, str]
) -> list[Quarantined]:
    """Write Parquet, some text no UTF-8; returns what has to be in quarantine."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    raw = "image" if "image" in columns else "text"
    if raw == "text":
        columns["text"] = [text.encode() for text in columns["text"]]
    for row, reason in reasons.items():
        if reason == "not_utf8":
            columns["text"][row] = b"caf\xe9"
    pq.write_table(pa.table(columns), path)
    return [
        Quarantined(rows[row]["id"], reason, columns[raw][row][: 64 * 1024])
        for row, reason in reasons.items()
    ]


OF_IDS = ("missing_id", "inside", "across", "unsafe_id")
OF_TEXT = ("not_utf8", "too_long", "control_characters")
OF_EMBEDDINGS = ("not_finite", "zero_embedding", "wrong_dimension")


@pytest.mark.parametrize("kind", ["captions", "images", "embeddings.parquet", "embeddings.jsonl"])
def test_exactly_the_rows_that_cannot_be_used_are_quarantined(
    request: pytest.FixtureRequest,
    clouds: Path,
    world: World,
    tmp_path: Path,
    fails: Callable[..., str],
    kind: str,
):
    """A tenth of the rows is damaged, in every way that the kind of corpus has."""
    output, unit_rows = tmp_path / "run", 50
    if kind == "captions":
        rows = [{"id": f"c{row:03d}", "text": one} for row, one in enumerate(world.captions[:200])]
        planted, reasons = plant(rows, unit_rows, (*OF_IDS, *OF_TEXT, "empty", "malformed"))
        path = tmp_path / "captions.jsonl"
        expected = write_lines(path, planted, reasons)
        command, root = "encode", output / "embeddings/text"
        values = small_values(output, text={"path": str(path)})
    elif kind == "images":
        rows, unit_rows = pq.read_table(world.images).to_pylist(), 32
        planted, reasons = plant(rows, unit_rows, (*OF_IDS, "undecodable_image"))
        path = tmp_path / "images.parquet"
        expected = write_table(path, planted, reasons)
        command, root = "encode", output / "embeddings/image"
        units = {"images_per_shard": unit_rows}
        values = small_values(output, image={"path": str(path)}, units=units)
    else:
        cloud = unit_cloud(200, WIDTH, -0.4, 1)
        rows = [
            {"id": f"t{row:03d}", "text": f"text {row}", "embedding": values.tolist()}
            for row, values in enumerate(cloud)
        ]
        kinds = (*OF_IDS, *OF_TEXT, *OF_EMBEDDINGS)
        path, write = tmp_path / kind, write_table
        if kind.endswith(".jsonl"):
            kinds, write = (*kinds, "malformed"), write_lines
        planted, reasons = plant(rows, unit_rows, kinds)
        expected = write(path, planted, reasons)
        command, root = "synthesize", output / "dataset"
        aligner = {"path": str(request.getfixturevalue("cloud_run")[0] / "aligner")}
        values = cloud_values(clouds, output, text={"path": str(path)}, aligner=aligner)

    counts = Counter(reasons.values())
    message = fails(command, values, 1, "--set", "rejects.max_share=0.05")
    assert message.startswith(f"{len(reasons)} of {len(rows)} rows of {path} cannot be used (")
    assert "more than rejects.max_share=0.05 allows" in message
    assert all(f"{count} {reason}" in message for reason, count in counts.items())
    assert not (root / "current.json").exists()

    config = write_config(tmp_path / "c.yaml", values)
    result = invoke(command, config, "--set", "rejects.max_share=0.2", "--json", "-q")
    assert result.exit_code == 0, result.output
    (flow,) = json.loads(result.stdout.splitlines()[-1])["flows"]
    assert (flow["rows"], flow["rejected"]) == (len(rows) - len(reasons), len(reasons))
    assert flow["units"] == flow["reused_units"] == -(-len(rows) // unit_rows)
    tables = [pq.read_table(one) for one in sorted((root / "quarantine").glob("*.parquet"))]
    found = [
        Quarantined(row["id"] or "", row["reason"], row["content"])
        for row in pa.concat_tables(tables).to_pylist()
    ]
    assert sorted(found) == sorted(expected)
    manifest, kept = dataset_rows(root)
    assert kept.column("id").to_pylist() == sorted(
        one["id"] for row, one in enumerate(rows) if row not in reasons
    )
    assert manifest.quarantined == dict(sorted(counts.items()))
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
        f"rejects.max_share=0.01 allows; rejected rows stand in {root}/quarantine; mend the "
        "input or raise the limit"
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


def test_captions_that_the_encoder_cuts(
    world: World, clouds: Path, tmp_path: Path, fails: Callable[..., str]
):
    lines = [*world.captions[:20], "a red circle and " * 100]
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    values = small_values(tmp_path / "run", text={"path": str(tmp_path / "captions.txt")})
    config = write_config(tmp_path / "c.yaml", {**values, "rejects": {"max_share": 0.1}})
    reject, split = (("--set", f"text.over_long={what}") for what in ("reject", "split"))

    def encoded(*arguments: str) -> tuple[int, int, int, int]:
        result = invoke("encode", config, "--json", "-q", *arguments)
        assert result.exit_code == 0, result.output
        (flow,) = json.loads(result.stdout.splitlines()[-1])["flows"]
        return flow["rows"], flow["truncated"], flow["rejected"], flow["reused_units"]

    assert encoded() == (21, 1, 0, 0)
    image = {"path": str(clouds / "images.parquet"), "embedding_column": "embedding"}
    stale = fails("fit", {**values, "image": image}, 1, *reject)
    assert "made from another text.over_long (truncate, now reject)" in stale
    assert encoded(*reject) == (20, 0, 1, 0)
    root = tmp_path / "run/embeddings/text"
    assert [(row, reason) for _, row, reason in quarantined_rows(root)] == [(20, "too_long")]
    assert verify(str(root)).problems == ()
    assert encoded(*reject)[-1] == encoded()[-1] == 1
    cut = by("text", dataset_rows(root)[1])
    assert encoded(*split) == (21, 1, 0, 0)
    in_parts = by("text", dataset_rows(root)[1])
    for text, embedding in in_parts.items():
        assert np.array_equal(embedding, cut[text]) == (text != lines[-1])
    assert np.linalg.norm(in_parts[lines[-1]].astype(float)) == pytest.approx(1, abs=1e-3)


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
