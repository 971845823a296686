"""Inputs and folders made to do harm: refused or quarantined, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import open_manifest, verify
from tests.cluster.samples import (
    TEXTS,
    WIDTH,
    cloud_values,
    dataset_rows,
    invoke,
    small_values,
    unit_cloud,
    write_config,
    write_embeddings,
)


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Return every path below a folder, links not followed, with its digest and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            state = f"link to {path.readlink()}"
        else:
            state = "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (state, path.lstat().st_mtime_ns if not path.is_dir() else 0)
    return found


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Path]:
    """Return an empty folder; asserts that nothing beside it has changed in the end.

    Beside it stand `secret/` and, as a place that a bad path could name, `etc/`.
    """
    around = tmp_path / "around"
    for name in ("secret", "etc"):
        (around / name).mkdir(parents=True)
        (around / name / "kept.parquet").write_bytes(b"kept")
    sandbox = around / "a" / "sandbox"
    sandbox.mkdir(parents=True)

    def outside() -> dict[str, tuple[str, int]]:
        found = contents(around)
        return {path: one for path, one in found.items() if not path.startswith(str(sandbox))}

    before = outside()
    yield sandbox
    assert outside() == before


@pytest.fixture
def synthesized(cloud_run: tuple[Path, Any], clouds: Path, sandbox: Path) -> Path:
    """Return a copy of a run on clouds, to be tampered with."""
    return Path(shutil.copytree(cloud_run[0], sandbox / "run"))


def run_to_the_end(command: str, sandbox: Path, values: dict[str, Any]) -> Any:
    """Run a command that has to succeed; returns its summary."""
    values = {**values, "rejects": {"max_share": 0.9}}
    result = invoke(command, write_config(sandbox / "c.yaml", values), "--json", "-q")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_hostile_lines_are_quarantined(local_ray: None, sandbox: Path):
    marker = sandbox.parent.parent / "etc" / "executed"
    lines = [
        json.dumps({"id": "../../etc/x", "text": "a red circle"}),
        json.dumps({"id": str(marker), "text": "a red circle"}),
        json.dumps({"id": "a\x00b", "text": "a red circle"}),
        json.dumps({"id": "\x1b]0;title\x07", "text": "a red circle"}),
        json.dumps({"id": "long", "text": "a red circle " * 80_000}),
        json.dumps({"id": "signs", "text": "\x07" * 50_000}),
        json.dumps({"id": "more signs", "text": "\x07" * 100_000}),
        '{"id": "nested", "text": ' + "[" * 100_000,
        '{"id": "nested", "text": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
        '{"id": "digits", "text": "a red circle", "n": ' + "9" * 100_000 + "}",
        '{"id": 1e999, "text": "a red circle"}',
        json.dumps(
            {"id": f"__import__('os').mkdir({str(marker)!r})", "text": f"$(touch {marker})"}
        ),
        json.dumps({"id": "good", "text": "a red circle above a blue square"}),
    ]
    (sandbox / "captions.jsonl").write_text("\n".join(lines))
    values = small_values(sandbox / "run", text={"path": str(sandbox / "captions.jsonl")})
    (flow,) = run_to_the_end("encode", sandbox, values)["flows"]
    root = sandbox / "run/embeddings/text"
    manifest, table = dataset_rows(root)
    assert table.column("id").to_pylist() == [json.loads(lines[-2])["id"], "good"]
    assert flow["rejected"] == len(lines) - 2
    assert manifest.quarantined == {
        "control_characters": 1,
        "malformed": 4,
        "too_long": 2,
        "unsafe_id": 4,
    }
    (shard,) = (root / "quarantine").iterdir()
    kept = pq.read_table(shard).column("content").to_pylist()
    assert max(map(len, kept)) == 64 * 1024
    assert verify(str(root)).problems == ()


def test_a_line_of_fifty_megabytes(local_ray: None, sandbox: Path):
    with (sandbox / "captions.jsonl").open("w") as file:
        file.write('{"id": "a", "text": "' + "x" * 50_000_000 + '"}\n')
        file.write('{"id": "b", "text": "a red circle"}\n')
    values = small_values(sandbox / "run", text={"path": str(sandbox / "captions.jsonl")})
    run_to_the_end("encode", sandbox, values)
    root = sandbox / "run/embeddings/text"
    assert open_manifest(str(root)).quarantined == {"too_long": 1}
    assert sum(path.stat().st_size for path in (root / "quarantine").iterdir()) < 100_000


def varint(number: int) -> bytes:
    """Return a number as Thrift's compact protocol writes an i64."""
    number = (number << 1) ^ (number >> 63)
    parts = []
    while number > 0x7F:
        parts.append(0x80 | number & 0x7F)
        number >>= 7
    return bytes([*parts, number])


def lying_parquet(path: Path, rows: int, claimed: int) -> None:
    """Write a Parquet file whose footer claims another number of rows, everywhere it says it."""
    table = pa.table({"id": [f"r{row}" for row in range(rows)], "text": ["a red circle"] * rows})
    pq.write_table(table, path)
    data = path.read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    body, footer = data[: -8 - length], data[-8 - length : -8]
    before, after = b"\x16" + varint(rows), b"\x16" + varint(claimed)
    assert before in footer
    footer = footer.replace(before, after)
    path.write_bytes(body + footer + struct.pack("<I", len(footer)) + b"PAR1")
    assert pq.read_metadata(path).num_rows == claimed


PARQUETS: dict[str, Callable[[Path], object]] = {
    "billions of rows": lambda path: lying_parquet(path, 777, 5_000_000_000),
    "fewer rows than none": lambda path: lying_parquet(path, 777, 0),
    "only magic": lambda path: path.write_bytes(b"PAR1" * 3),
    "footer longer than the file": lambda path: path.write_bytes(
        b"PAR1" + b"\x00" * 50 + struct.pack("<I", 2**31 - 1) + b"PAR1"
    ),
    "garbage for a footer": lambda path: path.write_bytes(
        b"PAR1" + hashlib.shake_128(b"x").digest(4000) + struct.pack("<I", 3900) + b"PAR1"
    ),
}


@pytest.mark.parametrize("kind", PARQUETS)
def test_parquet_that_lies(fails: Callable[..., str], sandbox: Path, kind: str):
    path = sandbox / "captions.parquet"
    PARQUETS[kind](path)
    message = fails("encode", small_values(sandbox / "run", text={"path": str(path)}))
    assert str(path) in message
    assert not (sandbox / "run/embeddings/text/current.json").exists()


def tamper(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file by hand."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_receipt_that_claims_billions_of_rows_is_not_believed(
    synthesized: Path, clouds: Path, sandbox: Path
):
    (synthesized / "dataset/current.json").unlink()  # as after a run that was killed
    shutil.rmtree(synthesized / "dataset/versions")
    for path in (synthesized / "dataset/receipts").iterdir():
        tamper(path, lambda receipt: receipt.update(rows=10**12))
    flow = run_to_the_end("synthesize", sandbox, cloud_values(clouds, synthesized))["flows"][-1]
    assert (flow["rows"], flow["reused_units"]) == (TEXTS, 0)
    manifest, table = dataset_rows(synthesized / "dataset")
    assert manifest.rows == table.num_rows == TEXTS
    assert verify(str(synthesized / "dataset")).problems == ()


BAD_PATHS = ["../../../../secret/kept.parquet", "/OUTSIDE/secret/kept.parquet", "data/../../x"]


@pytest.mark.parametrize("path", [*BAD_PATHS, "file:///etc/passwd", "~/x", "data\\..\\x", "a\x00"])
def test_a_manifest_that_names_files_outside_is_refused(
    synthesized: Path, clouds: Path, sandbox: Path, fails: Callable[..., str], path: str
):
    root = synthesized / "dataset"
    named = path.replace("/OUTSIDE", str(sandbox.parent.parent))
    current = open_manifest(str(root)).version
    tamper(
        root / "versions" / f"{current}.json",
        lambda manifest: manifest["receipts"][0].update(path=named),
    )
    result = invoke("verify", str(root), "-q")
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    text = {"path": str(root), "embedding_column": None, "format": "dataset"}
    message = fails("fit", cloud_values(clouds, sandbox / "other", text=text))
    assert str(root) in message


@pytest.mark.parametrize("linked", ["shard", "data", "quarantine", "receipts"])
def test_a_link_that_leads_out_is_not_followed(
    synthesized: Path, clouds: Path, sandbox: Path, fails: Callable[..., str], linked: str
):
    """Neither read through nor written through."""
    secret, root = sandbox.parent.parent / "secret", synthesized / "dataset"
    if linked == "shard":
        place = next((root / "data").iterdir())
        place.unlink()
        place.symlink_to(secret / "kept.parquet")
    else:
        place = root / linked
        shutil.rmtree(place, ignore_errors=True)
        place.symlink_to(secret, target_is_directory=True)
    if linked in {"shard", "data"}:
        assert invoke("verify", str(root), "-q").exit_code == 1
    texts = unit_cloud(TEXTS, WIDTH, -0.4, 1)
    texts[3] = 0
    changed = write_embeddings(sandbox / "texts.parquet", "text", texts)
    over = {"text": {"path": str(changed)}, "rejects": {"max_share": 0.5}}
    over["units"] = {"max_attempts": 1}
    message = fails("synthesize", cloud_values(clouds, synthesized, **over))
    assert str(place) in message


def hostile_tensors(header: dict[str, Any] | bytes, length: int | None = None) -> bytes:
    """Return a safetensors file with any header, and 64 bytes of data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(64)


F32 = "F32"
HEADERS: dict[str, bytes] = {
    "beyond the end": hostile_tensors(
        {"a": {"dtype": F32, "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "overlapping": hostile_tensors(
        {
            "a": {"dtype": F32, "shape": [16], "data_offsets": [0, 64]},
            "b": {"dtype": F32, "shape": [16], "data_offsets": [0, 64]},
        }
    ),
    "negative": hostile_tensors({"a": {"dtype": F32, "shape": [-1], "data_offsets": [-4, 0]}}),
    "overflowing": hostile_tensors(
        {"a": {"dtype": F32, "shape": [2**33, 2**33], "data_offsets": [0, 64]}}
    ),
    "endless header": hostile_tensors(b"{}", 2**63),
    "nested header": hostile_tensors(b'{"a":' * 50_000),
    "pickle": b"\x80\x04cos\nsystem\n(S'touch executed'\ntR.",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_an_artifact_with_a_crafted_header_is_refused(
    synthesized: Path, clouds: Path, fails: Callable[..., str], kind: str
):
    """Its digest fits, as it would if it was published so."""
    (tensors,) = (synthesized / "aligner").glob("*.safetensors")
    tensors.write_bytes(HEADERS[kind])
    digest = hashlib.sha256(HEADERS[kind]).hexdigest()
    config = tensors.with_name("config.json")
    tamper(config, lambda content: content.update(tensors_sha256=digest))
    message = fails("synthesize", cloud_values(clouds, synthesized))
    assert f"{tensors.name} in {tensors.parent} is damaged" in message
    assert not Path("executed").exists()
