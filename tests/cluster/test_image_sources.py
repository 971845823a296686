"""Images from folders and tars, through Ray, to verified datasets; what is broken is set aside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.storage import verify
from tests.cluster.conftest import World
from tests.cluster.samples import dataset_rows, error_line, invoke, small_values, write_config
from tests.pictures import huge_png
from tests.tars import special, write_tar

FORMS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "JPEG": "JPEG"}
OTHER_TYPES = [
    b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    b"<!DOCTYPE html><title>403 Forbidden</title>",
    b"just a line of text\n",
]


def drawn(seed: int, form: str) -> bytes:
    """Return an image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=form)
    return buffer.getvalue()


def damaged(
    images: dict[str, bytes], truncated: int, other_types: int, bombs: int
) -> dict[str, bytes]:
    """Damage some images, at seeded places; returns those."""
    names = list(images)
    chosen = np.random.default_rng(5).permutation(len(names))[: truncated + other_types + bombs]
    broken = {}
    for number, place in enumerate(chosen.tolist()):
        name = names[place]
        if number < truncated:
            share = 0.1 + 0.8 * number / truncated
            broken[name] = images[name][: int(share * len(images[name]))]
        elif number < truncated + other_types:
            broken[name] = OTHER_TYPES[number % len(OTHER_TYPES)]
        else:
            broken[name] = huge_png(20_000, 20_000)
    images |= broken
    return broken


def quarantined(root: Path) -> dict[str, tuple[str, bytes | None]]:
    """Return the reason and the content of every row in quarantine, by id."""
    rows = [
        row
        for path in sorted((root / "quarantine").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    found = {row["id"]: (row["reason"], row["content"]) for row in rows}
    assert len(found) == len(rows)
    return found


def succeed(command: str, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    result = invoke(command, write_config(folder / "c.yaml", values), "--json", "-q")
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return summary


def test_a_folder_of_a_thousand_images_of_which_61_are_broken(local_ray: None, tmp_path: Path):
    endings = list(FORMS)
    images = {}
    for row in range(1000):
        ending = endings[row % len(endings)]
        images[f"{row % 7}/{row % 3}/{row:04d}.{ending}"] = drawn(row, FORMS[ending])
    broken = damaged(images, truncated=50, other_types=10, bombs=1)
    assert len(broken) == 61
    for name, content in images.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.with_suffix(".txt").write_text("a caption beside it\n")
    values = small_values(
        tmp_path / "run",
        image={"path": str(tmp_path / "photos")},
        units={"images_per_shard": 150},
        rejects={"max_share": 0.07},
        ray={"encode_actors": 2},
    )
    (flow,) = succeed("encode", tmp_path, values)["flows"]
    assert (flow["rows"], flow["rejected"], flow["units"]) == (939, 61, 7)
    root = tmp_path / "run/embeddings/image"
    assert quarantined(root) == {
        name: ("undecodable_image", content[: 64 * 1024]) for name, content in broken.items()
    }
    manifest, table = dataset_rows(root)
    assert table.column("id").to_pylist() == sorted(images.keys() - broken.keys())
    assert verify(str(root)).problems == ()
    sources = sorted((one.source["start"], one.source["stop"]) for one in manifest.receipts)
    assert sources == [(start, min(start + 150, 1000)) for start in range(0, 1000, 150)]
    assert {one.source["path"] for one in manifest.receipts} == {str(tmp_path / "photos")}

    # A night later one image is there in place of a broken one: its unit alone is encoded.
    mended = min(broken)
    (tmp_path / "photos" / mended).write_bytes(drawn(5000, "PNG"))
    (flow,) = succeed("encode", tmp_path, values)["flows"]
    assert (flow["rows"], flow["rejected"], flow["reused_units"]) == (940, 60, 6)
    assert verify(str(root)).problems == ()


def test_tars_of_both_sides_to_a_dataset_of_substitutes(
    local_ray: None, world: World, tmp_path: Path
):
    pictures = pq.read_table(world.images).column("image").to_pylist()
    images = {f"{row:05d}": pictures[row % len(pictures)] for row in range(160)}
    broken = damaged(images, truncated=8, other_types=3, bombs=1)
    for part in range(2):
        members = []
        for row in range(80 * part, 80 * part + 80):
            key, record = f"{row:05d}", {"width": 64 + row, "tags": [f"t{row}"]}
            if row == 100:
                members.append(special(f"{key}.png", b"2", "00000.png"))
            else:
                members.append((f"{key}.png", images[key]))
            members.append((f"{key}.txt", world.captions[row].encode()))
            members.append((f"{key}.json", json.dumps(record).encode()))
        write_tar(tmp_path / f"tars/{part:05d}.tar", members, "gnu")
    assert "00100" not in broken
    tars = str(tmp_path / "tars" / "*.tar")
    values = small_values(
        tmp_path / "run",
        text={"path": tars, "passed_through": ["width", "tags"]},
        image={"path": tars},
        units={"rows_per_shard": 30, "images_per_shard": 30},
        rejects={"max_share": 0.1},
    )
    summary = succeed("run", tmp_path, values)
    flows = {flow["name"]: flow for flow in summary["flows"]}
    assert (flows["encoding image"]["rows"], flows["encoding image"]["units"]) == (147, 6)
    assert quarantined(tmp_path / "run/embeddings/image") == {
        **{key: ("undecodable_image", content) for key, content in broken.items()},
        "00100": ("malformed", b'{"width": 164, "tags": ["t100"]}'),
    }
    _, table = dataset_rows(tmp_path / "run/dataset")
    assert table.column("id").to_pylist() == list(images)
    assert table.column("text").to_pylist() == list(world.captions[:160])
    assert table.column("width").to_pylist() == [64 + row for row in range(160)]
    assert table.column("tags").to_pylist() == [[f"t{row}"] for row in range(160)]
    for name in ("embeddings/text", "embeddings/image", "dataset"):
        assert verify(str(tmp_path / "run" / name)).problems == ()


def test_images_of_a_hugging_face_data_set(local_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = {f"{row:02d}.png": drawn(row, "PNG") for row in range(20)}
    broken = damaged(images, 1, 1, 0)
    lines = [json.dumps({"file_name": name, "key": name[:2]}) for name in images]
    for name, content in images.items():
        (folder / name).write_bytes(content)
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    image = {"path": str(folder), "format": "datasets", "id_column": "key"}
    values = small_values(tmp_path / "run", image=image, rejects={"max_share": 0.2})
    (flow,) = succeed("encode", tmp_path, values)["flows"]
    assert (flow["rows"], flow["rejected"]) == (18, 2)
    root = tmp_path / "run" / "embeddings" / "image"
    assert verify(str(root)).problems == ()
    assert quarantined(root) == {
        name[:2]: ("undecodable_image", content) for name, content in broken.items()
    }
    # The same pictures as files are the same rows, and are not fetched again in the next run.
    values["image"] = {"path": str(folder), "format": "images"}
    values["output"] = {**values["output"], "path": str(tmp_path / "files")}
    succeed("encode", tmp_path, values)
    _, copied = dataset_rows(root)
    _, files = dataset_rows(tmp_path / "files" / "embeddings" / "image")
    assert copied.column("embedding").equals(files.column("embedding"))


def test_embeddings_of_another_width_are_found_before_images_are_encoded(
    local_ray: None, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for row in range(4):
        (tmp_path / "pictures" / f"{row}.png").write_bytes(drawn(row, "PNG"))
    np.save(tmp_path / "texts.npy", np.eye(16, dtype=np.float32))
    sides = {"text": {"path": str(tmp_path / "texts.npy")}}
    sides["image"] = {"path": str(tmp_path / "pictures")}
    config = write_config(tmp_path / "c.yaml", small_values(tmp_path / "run", **sides))
    result = invoke("run", config, "-q")
    assert result.exit_code == 1
    assert "have width 16, the encoder demo gives 128" in error_line(result)
    assert not (tmp_path / "run" / "embeddings").exists()
