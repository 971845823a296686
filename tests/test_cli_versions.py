"""The commands about versions: list, show, diff, rollback, gc."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pipeline.names import Names
from pipeline.storage import Manifest, commit, open_manifest
from pipeline.storage.lease import Lease
from tests.cluster.samples import error_line, invoke
from tests.storage.samples import write_dataset
from tests.storage.test_history import three_versions


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, list[Manifest]]:
    made, _ = three_versions(str(tmp_path / "out"), tmp_path / "in")
    return tmp_path / "out", made


def files(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("lease/")}


def last_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_list(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    result = invoke("versions", "list", str(root), "-q", "--json")
    found = last_json(result)["versions"]
    assert [one["version"] for one in found] == [one.version for one in made]
    assert [one["current"] for one in found] == [False, False, True]
    assert found[1]["removed"] == 1
    assert found[1]["run"] == "run-2"
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if "│ 0" in line}
    assert list(lines) == [one.version for one in made]
    assert [" * " in line for line in lines.values()] == [False, False, True]
    assert "within" in lines[made[2].version]
    assert "…" not in result.stdout


def test_list_of_damaged_versions(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    (root / "versions" / f"{made[0].version}.json").write_text("{")
    (root / "current.json").write_text("{")
    result = invoke("versions", "list", str(root), "-q")
    assert result.exit_code == 0
    assert "damaged" in result.stdout
    assert f"{made[0].version}: " in result.stderr
    assert "no version is current" in result.stderr


def test_show(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    found = last_json(invoke("versions", "show", str(root), "-q", "--json"))
    assert found["version"] == made[2].version
    assert found["drift"] == {"exceeded": [], "corpus": {"mean": 0.25}}
    older = invoke("versions", "show", str(root), made[0].version, "-q", "--json")
    assert last_json(older)["config"] == made[0].config
    assert not last_json(older)["current"]
    lines = older.stdout.splitlines()
    for line in ("quarantined.empty: 3", "encoder.fingerprint: abc", "software.python: 3"):
        assert line in lines


def test_show_says_what_the_sides_are_called(tmp_path: Path):
    root = str(tmp_path / "out")
    _, receipts = write_dataset(root, tmp_path / "in")
    commit(
        root,
        kind="image-embeddings",
        dimension=8,
        dtype="float16",
        receipts=receipts,
        source={},
        config={},
        encoder={},
        names=Names(source="audio", target="depth"),
    )
    lines = invoke("versions", "show", root).stdout.splitlines()
    assert {"kind: depth-embeddings", "names.source: audio", "names.target: depth"} <= {*lines}


def test_diff(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    result = invoke("versions", "diff", str(root), made[0].version, "-q", "--json")
    found = last_json(result)
    assert (found["older"], found["newer"]) == (made[0].version, made[2].version)
    assert (found["total"]["removed_rows"], found["total"]["kept_rows"]) == (18, 9)
    assert found["settings"]["aligner.fingerprint"] == [None, "f3"]
    assert "aligner.fingerprint: - -> f3" in result.stdout.splitlines()
    (line,) = [line for line in result.stdout.splitlines() if "captions.jsonl │" in line]
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["0", "2", "1", "0", "18", "9"]
    assert all(len(line) <= 120 for line in result.stdout.splitlines()[:6])
    back = invoke("versions", "diff", str(root), made[1].version, made[0].version, "-q", "--json")
    assert last_json(back)["total"]["added_units"] == 1


def test_rollback(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    result = invoke("rollback", str(root), made[0].version, "-q", "--json")
    assert last_json(result) == {"version": made[0].version, "units": 3, "rows": 27}
    assert open_manifest(str(root)) == made[0]
    (root / made[2].receipts[0].path).unlink()
    failed = invoke("rollback", str(root), made[2].version, "-q")
    assert failed.exit_code == 1
    assert made[2].receipts[0].path in error_line(failed)
    assert open_manifest(str(root)) == made[0]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_gc_deletes_nothing_unless_told(dataset: tuple[Path, list[Manifest]], flags: list[str]):
    root, made = dataset
    before = files(root)
    result = invoke("gc", str(root), "--keep", "1", *flags, "-q", "--json")
    found = last_json(result)
    assert files(root) == before
    assert found["dropped"] == [made[0].version, made[1].version]
    assert len(found["files"]) == 6
    assert not found["deleted"]
    assert "nothing was deleted" in result.stdout
    assert not (root / "lease").exists()


def test_gc_deletes(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    before = files(root)
    found = last_json(invoke("gc", str(root), "--keep", "1", "--delete", "-q", "--json"))
    dropped = {f"versions/{name}.json" for name in found["dropped"]}
    assert before - files(root) == {*found["files"], *dropped}
    assert found["deleted"]
    assert invoke("verify", str(root), "-q").exit_code == 0
    assert open_manifest(str(root)) == made[2]


@pytest.mark.parametrize(
    "arguments", [["--keep", "0"], [], ["--keep", "1", "--delete", "--dry-run"]]
)
def test_gc_used_wrongly(dataset: tuple[Path, list[Manifest]], arguments: list[str]):
    root, _ = dataset
    before = files(root)
    assert invoke("gc", str(root), *arguments, "-q").exit_code == 2
    assert files(root) == before


def test_while_a_run_writes(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    before = files(root)
    with Lease.acquire(str(root), run_id="night-7", command="nightly"):
        for command in (["gc", str(root), "--keep", "1", "--delete"],):
            failed = invoke(*command, "-q")
            assert failed.exit_code == 1
            assert "night-7" in error_line(failed)
        failed = invoke("rollback", str(root), made[0].version, "-q")
        assert failed.exit_code == 1
        assert "night-7" in error_line(failed)
    assert files(root) == before


@pytest.mark.parametrize(
    "arguments",
    [["versions", "list"], ["versions", "show"], ["versions", "diff"], ["rollback"], ["gc"]],
)
def test_no_dataset(tmp_path: Path, arguments: list[str]):
    more = {"diff": ["000001-00000000"], "rollback": ["000001-00000000"], "gc": ["--keep", "1"]}
    result = invoke(*arguments, str(tmp_path / "none"), *more.get(arguments[-1], []), "-q")
    assert result.exit_code == 1
    assert "has no version" in error_line(result) or "no dataset in" in error_line(result)
    assert not (tmp_path / "none").exists()


def test_what_a_manifest_says_cannot_drive_the_terminal(dataset: tuple[Path, list[Manifest]]):
    root, made = dataset
    escape, turned = "\x1b]0;owned\x07\x1b[2J", "\u202e"
    where = root / "versions" / f"{made[2].version}.json"
    value = json.loads(where.read_text())
    value["created"] = value["run"] = value["encoder"]["model"] = escape + turned
    value["encoder"][escape] = value["config"][escape] = escape
    value["aligner"]["fingerprint"] = escape
    value["software"] = {"x": escape}
    for receipt in value["receipts"]:
        receipt["unit"] = receipt["source"]["path"] = escape
    where.write_text(json.dumps(value))
    sha256 = hashlib.sha256(where.read_bytes()).hexdigest()
    pointer = {"version": made[2].version, "sha256": sha256}
    (root / "current.json").write_text(json.dumps(pointer))
    for arguments in (
        ["versions", "list", str(root)],
        ["versions", "show", str(root)],
        ["versions", "diff", str(root), made[0].version],
        ["verify", str(root)],
        ["rollback", str(root), made[2].version],
        ["gc", str(root), "--keep", "1"],
    ):
        result = invoke(*arguments, "--json")
        for sign in (escape[0], "\x07", turned):
            assert sign not in result.stdout + result.stderr, arguments
    assert "\\x1b" in invoke("versions", "show", str(root), "-q").stdout
