import dataclasses
import hashlib
import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import commit, locations, verify
from tests.storage.samples import unit_norm, vectors, write_dataset


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "out"
    manifest, _ = write_dataset(str(root), tmp_path / "in", rows=40)
    return root, manifest


def problems(root):
    return {(one.path, one.what) for one in verify(str(root)).problems}


def named(root):
    return {one.path for one in verify(str(root)).problems}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("memory", [False, True])
def test_a_whole_dataset_has_no_problem(tmp_path, dtype, memory):
    root = f"memory://{uuid.uuid4().hex}" if memory else str(tmp_path / "out")
    manifest, _ = write_dataset(root, tmp_path / "in", dtype=dtype)
    seen = []
    report = verify(root, lambda done, of: seen.append((done, of)))
    assert report.problems == ()
    assert (report.version, report.shards, report.rows) == (manifest.version, 3, 27)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_dataset_on_any_store(place, tmp_path):
    manifest, _ = write_dataset(place, tmp_path / "in")
    assert verify(place).problems == ()
    path = manifest.receipts[1].path
    locations.write_bytes(locations.join(place, path), b"junk")
    assert {one.path for one in verify(place).problems} == {path}


def test_an_older_version(dataset):
    root, manifest = dataset
    second = commit(
        str(root),
        kind=manifest.kind,
        dimension=manifest.dimension,
        dtype=manifest.dtype,
        receipts=manifest.receipts[1:],
        source=manifest.source,
        config={},
        encoder=manifest.encoder,
    )
    (root / manifest.receipts[0].path).unlink()
    assert verify(str(root)).problems == ()
    assert verify(str(root), version=second.version).problems == ()
    report = verify(str(root), version=manifest.version)
    assert (report.version, report.shards) == (manifest.version, 4)
    assert [one.path for one in report.problems] == [manifest.receipts[0].path]
    (root / "current.json").write_text("{")
    assert verify(str(root), version=second.version).problems == ()


@pytest.mark.parametrize("kind", ["path", "quarantine_path"])
def test_a_link_in_place_of_a_shard(dataset, tmp_path, kind):
    root, manifest = dataset
    path = root / getattr(manifest.receipts[1], kind)
    path.rename(tmp_path / "elsewhere.parquet")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    ((where, what),) = problems(root)
    assert where == getattr(manifest.receipts[1], kind)
    assert "symbolic link" in what


def test_a_path_that_leaves_the_folder_is_a_problem_beside_others(dataset):
    root, manifest = dataset

    def change(value):
        value["receipts"][0]["path"] = "../../etc/passwd"

    edit(root, manifest, change, follow=True)
    (root / manifest.receipts[1].path).unlink()
    found = problems(root)
    assert ("../../etc/passwd", True) in {(path, "refused" in what) for path, what in found}
    assert (manifest.receipts[1].path, "missing") in found


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda changes: changes["added"].pop(), "added and kept are not those it lists"),
        (lambda changes: changes["added"].append("x"), "added and kept are not those it lists"),
        (lambda changes: changes["kept"].append(changes["added"][0]), "names a unit twice"),
        (lambda changes: changes["removed"].append("x"), "not those of its parent"),
        (lambda changes: changes["kept"].append(changes["added"].pop()), "not those of its parent"),
    ],
)
def test_changes_that_the_receipts_do_not_bear_out(dataset, change, what):
    root, manifest = dataset
    where = edit(root, manifest, lambda value: change(value["changes"]), follow=True)
    assert any(what in found for path, found in problems(root) if path == where)


def test_changes_against_the_parent(dataset):
    root, manifest = dataset
    again = {
        "kind": manifest.kind,
        "dimension": manifest.dimension,
        "dtype": manifest.dtype,
        "source": manifest.source,
        "config": {},
        "encoder": manifest.encoder,
    }
    second = commit(str(root), receipts=manifest.receipts[1:], **again)
    assert problems(root) == set()
    where = edit(root, second, lambda value: value["changes"]["removed"].clear(), follow=True)
    assert [path for path, what in problems(root) if "its parent" in what] == [where]
    (root / "versions" / f"{manifest.version}.json").unlink()  # collected: nothing to compare with
    assert problems(root) == set()


def test_content_that_does_not_fit_the_name(dataset):
    root, manifest = dataset
    where = edit(root, manifest, lambda value: value["encoder"].update(model="x"), follow=True)
    assert {path for path, what in problems(root) if "than its name says" in what} == {where}


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["path", "quarantine_path"])
def test_one_flipped_byte(dataset, place, kind):
    root, manifest = dataset
    path = getattr(manifest.receipts[1], kind)
    data = bytearray((root / path).read_bytes())
    data[int(place * len(data))] ^= 1
    (root / path).write_bytes(bytes(data))
    assert named(root) == {path}
    assert any("bytes were changed" in what for _, what in problems(root))


@pytest.mark.parametrize("kind", ["path", "quarantine_path"])
def test_a_deleted_shard(dataset, kind):
    root, manifest = dataset
    path = getattr(manifest.receipts[2], kind)
    (root / path).unlink()
    assert problems(root) == {(path, "missing")}


def test_a_shard_cut_short(dataset):
    root, manifest = dataset
    path = manifest.receipts[0].path
    (root / path).write_bytes((root / path).read_bytes()[:-9])
    assert named(root) == {path}


def test_a_row_count_edited_in_a_receipt(dataset):
    root, manifest = dataset
    path = manifest.receipts[0].path
    receipt = root / "receipts" / path.replace("data/", "").replace("parquet", "json")
    receipt.write_text(receipt.read_text().replace('"rows": 9', '"rows": 8'))
    ((where, what),) = problems(root)
    assert where == f"receipts/{receipt.name}"
    assert path in what
    assert "rows 8 (manifest: 9)" in what


def test_a_damaged_or_missing_receipt(dataset):
    root, _ = dataset
    receipts = sorted((root / "receipts").iterdir())
    receipts[0].write_text("{")
    receipts[1].unlink()
    assert named(root) == {f"receipts/{receipts[0].name}"}


def edit(root, manifest, change, follow=False):
    where = root / "versions" / f"{manifest.version}.json"
    value = json.loads(where.read_text())
    change(value)
    where.write_text(json.dumps(value))
    if follow:
        pointer = {
            "version": manifest.version,
            "sha256": hashlib.sha256(where.read_bytes()).hexdigest(),
        }
        (root / "current.json").write_text(json.dumps(pointer))
    return f"versions/{manifest.version}.json"


@pytest.mark.parametrize("follow", [False, True])
def test_a_row_count_edited_in_the_manifest(dataset, follow):
    root, manifest = dataset
    path = manifest.receipts[0].path
    where = edit(root, manifest, lambda value: value["receipts"][0].update(rows=8), follow)
    found = problems(root)
    assert (path, "has 9 rows, its receipt says 8") in found
    assert (where, "says 36 rows, its shards' receipts say 35") in found
    assert any("sha256" in what for name, what in found if name == where) != follow


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda value: value.update(rows=1), "says 1 rows"),
        (lambda value: value.update(units=1), "says 1 units"),
        (lambda value: value.update(quarantined={}), "says {} rows quarantined"),
        (lambda value: value["receipts"].append(value["receipts"][0]), "2 times"),
        (lambda value: value.update(schema_version=0), "schema version 0"),
        (lambda value: value.update(dimension=4), "the manifest says float16[4]"),
        (lambda value: value.update(dtype="float32"), "the manifest says float32[8]"),
        (lambda value: value["receipts"][0].update(unit="x"), "its receipt of x"),
        (lambda value: value["receipts"][0].update(quarantine_rows=2), "its receipt says 2"),
        (lambda value: value["receipts"][0].update(quarantine_path=None), "no quarantine shard"),
        (lambda value: value["receipts"][0].update(quarantined={"malformed": 1}), "holds"),
        (lambda value: value["receipts"][0].update(bytes=1), "bytes, its receipt says 1"),
    ],
)
def test_manifests_that_do_not_add_up(dataset, change, what):
    root, manifest = dataset
    edit(root, manifest, change, follow=True)
    assert any(what in found for _, found in problems(root))


def rewritten(root, manifest, change, aligner=None):
    """A shard of other content, with everything that names its bytes brought in line."""
    receipt = manifest.receipts[0]
    table = pq.read_table(root / receipt.path)
    notes = table.schema.metadata
    pq.write_table(change(table).replace_schema_metadata(notes), root / receipt.path)
    data = (root / receipt.path).read_bytes()
    new = dataclasses.replace(receipt, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    name = receipt.path.replace("data/", "receipts/").replace("parquet", "json")
    (root / name).write_text(new.to_json())
    commit(
        str(root),
        kind=manifest.kind,
        dimension=manifest.dimension,
        dtype=manifest.dtype,
        receipts=[new, *manifest.receipts[1:]],
        source=manifest.source,
        config={},
        encoder=manifest.encoder,
        aligner=aligner,
    )
    return receipt.path


def replaced(name, column):
    return lambda table: table.set_column(table.column_names.index(name), name, column)


def off_norm():
    values = unit_norm(9)
    values[3] *= 1.01
    return vectors(values, "float16")


def not_finite():
    values = unit_norm(9)
    values[3, 2] = np.nan
    return vectors(values, "float16")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.take(pa.array(range(8, -1, -1))), "its ids are not sorted"),
        (replaced("id", pa.array(["a", "a", *"bcdefgh"])), "1 ids stand in it more than once"),
        (replaced("id", pa.array([None, *"abcdefgh"])), "ids that are null"),
        (replaced("id", pa.array(range(9))), "ids that are null or no strings"),
        (replaced("embedding", off_norm()), "1 embeddings are not of unit norm"),
        (replaced("embedding", not_finite()), "1 embeddings are not finite"),
        (replaced("embedding", vectors(unit_norm(9, 4), "float16")), "embeddings of type"),
        (lambda table: table.drop(["embedding"]), "no column id and embedding"),
        (lambda table: table.slice(1), "has 8 rows, its receipt says 9"),
    ],
)
def test_shards_of_wrong_content(dataset, change, what):
    root, manifest = dataset
    path = rewritten(root, manifest, change)
    found = problems(root)
    assert {name for name, _ in found} == {path}
    assert any(what in one for _, one in found)


@pytest.mark.parametrize("said", [None, True, False])
def test_norms_are_free_where_the_aligner_says_so(dataset, said):
    root, manifest = dataset
    aligner = {"method": "any"} if said is None else {"method": "any", "unit_rows": said}
    rewritten(root, manifest, replaced("embedding", off_norm()), aligner)
    off = any("not of unit norm" in what for _, what in problems(root))
    assert off == (said is not False)
    assert ("not normalised" in (root / "README.md").read_text()) == (said is False)
    rewritten(root, manifest, replaced("embedding", not_finite()), aligner)
    assert any("1 embeddings are not finite" in what for _, what in problems(root))


def test_an_id_in_two_shards(dataset):
    root, manifest = dataset
    other = pq.read_table(root / manifest.receipts[1].path).column("id")
    rewritten(root, manifest, replaced("id", other))
    assert problems(root) == {(manifest.receipts[1].path, "9 ids stand in another shard too")}


def test_metadata_of_another_schema(dataset):
    root, manifest = dataset
    receipt = manifest.receipts[0]
    table = pq.read_table(root / receipt.path)
    pq.write_table(table.replace_schema_metadata({}), root / receipt.path)
    found = [what for path, what in problems(root) if path == receipt.path]
    assert any("schema version none" in what for what in found)
    assert any("of unit none" in what for what in found)


def test_several_problems_are_all_named(dataset):
    root, manifest = dataset
    first, second, third, _ = (one.path for one in manifest.receipts)
    (root / first).unlink()
    (root / second).write_bytes(b"junk")
    (root / third).write_bytes((root / third).read_bytes()[::-1])
    assert named(root) == {first, second, third}


def test_without_a_manifest_there_is_nothing_to_go_by(tmp_path):
    with pytest.raises(ValueError, match="no dataset"):
        verify(str(tmp_path))
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    locations.remove(str(next((tmp_path / "out" / "versions").iterdir())))
    with pytest.raises(ValueError, match="has no version"):
        verify(str(tmp_path / "out"))
