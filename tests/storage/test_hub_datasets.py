import io
import json
import secrets
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.storage import hub_datasets
from pipeline.storage.hub_datasets import HubDataset, copied

ROWS = {"id": [f"r{row}" for row in range(30)], "text": [f"caption {row}" for row in range(30)]}
KINDS = ("saved", "saved splits", "parquet", "json")


def write(folder, kind):
    rows = datasets.Dataset.from_dict(ROWS | {"n": list(range(30))})
    if kind == "saved":
        rows.save_to_disk(str(folder))
    elif kind == "saved splits":
        splits = datasets.DatasetDict({"train": rows, "test": rows.select(range(3))})
        splits.save_to_disk(str(folder))
    elif kind == "parquet":
        folder.mkdir()
        rows.to_parquet(str(folder / "train.parquet"))
    else:
        folder.mkdir()
        rows.to_json(str(folder / "train.jsonl"))
    return str(folder)


def run():
    """Another run each time."""
    return secrets.token_hex(4)


def read(copy):
    return pq.read_table([str(path) for path in sorted(Path(copy.folder).glob("*.parquet"))])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_asked_for(tmp_path, kind, streaming):
    path = write(tmp_path / "in", kind)
    dataset = HubDataset(path=path, streaming=streaming, columns=("text",), optional=("id", "none"))
    seen = []
    target = copied(dataset, str(tmp_path / "out"), "run", lambda rows, _: seen.append(rows))
    assert read(target).to_pydict() == ROWS
    assert seen[-1] == 30


def test_a_copy_is_made_once_and_anew_when_files_change(tmp_path, monkeypatch):
    path = write(tmp_path / "in", "json")
    dataset = HubDataset(path=path, columns=("text",))
    first = copied(dataset, str(tmp_path / "out"), run())
    with monkeypatch.context() as patch:
        patch.setattr(hub_datasets, "_tables", None)
        assert copied(dataset, str(tmp_path / "out"), run()) == first
    with (tmp_path / "in" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "text": "new", "n": 1}) + "\n")
    second = copied(dataset, str(tmp_path / "out"), run())
    assert read(second).column("text").to_pylist() == [*ROWS["text"], "new"]
    # The copy of before may be in use; older ones are not left to fill the disk.
    with (tmp_path / "in" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "newer", "text": "newer", "n": 1}) + "\n")
    third = copied(dataset, str(tmp_path / "out"), run())
    whole = [path.parent for path in (tmp_path / "out").glob("*/copied.json")]
    assert {str(path) for path in whole} == {second.folder, third.folder}
    assert not list(Path(first.folder).glob("*"))


def test_a_run_reads_one_copy_whatever_happens_to_the_data_set(tmp_path):
    path = write(tmp_path / "in", "json")
    dataset = HubDataset(path=path, columns=("text",))
    first = copied(dataset, str(tmp_path / "out"), "this run")
    with (tmp_path / "in" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "new", "text": "new", "n": 1}) + "\n")
    assert copied(dataset, str(tmp_path / "out"), "this run") == first
    assert copied(dataset, str(tmp_path / "out"), "another run") != first


def test_without_the_hub_the_last_copy_serves(tmp_path, monkeypatch):
    class Hub:
        def dataset_info(self, path, revision):
            raise ConnectionError("no route to the hub")

    dataset = HubDataset(path="somebody/captions", revision="main", columns=("text",))
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "HfApi", Hub)
        with pytest.raises(ValueError, match="no route to the hub"):
            copied(dataset, str(tmp_path / "out"), run())
        patch.setattr(Hub, "dataset_info", lambda *_, **__: type("Info", (), {"sha": "a" * 40}))
        rows = datasets.Dataset.from_dict(ROWS)
        patch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
        first = copied(dataset, str(tmp_path / "out"), run())
    other = HubDataset(path="somebody/else", revision="main", columns=("text",))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    found = copied(dataset, str(tmp_path / "out"), run())
    assert (found.folder, first.stale) == (first.folder, "")
    assert "no route to the hub" in found.stale
    with pytest.raises(ValueError, match="somebody/else"):
        copied(other, str(tmp_path / "out"), run())


def test_a_copy_that_was_cut_short_is_none(tmp_path, monkeypatch):
    dataset = HubDataset(path=write(tmp_path / "in", "parquet"), columns=("text",))
    real = hub_datasets._tables

    def dying(given):
        yield next(real(given)).slice(0, 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_datasets, "_PART_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(hub_datasets, "_tables", dying)
        with pytest.raises(KeyboardInterrupt):
            copied(dataset, str(tmp_path / "out"), run())
    target = copied(dataset, str(tmp_path / "out"), run())
    assert read(target).column("text").to_pylist() == ROWS["text"]


@pytest.mark.parametrize("streaming", [True, False])
def test_images_come_as_their_files_are(tmp_path, streaming):
    folder = tmp_path / "in"
    folder.mkdir()
    for row in range(4):
        Image.new("RGB", (9, 7), (row * 40, 0, 0)).save(folder / f"{row}.png")
    (folder / "metadata.csv").write_text(
        "file_name,id\n" + "".join(f"{row}.png,p{row}\n" for row in range(4))
    )
    dataset = HubDataset(
        path=str(folder),
        streaming=streaming,
        columns=("image",),
        optional=("id",),
        image="image",
    )
    table = read(copied(dataset, str(tmp_path / "out"), run()))
    assert table.schema.field("image").type == pa.binary()
    assert table.column("id").to_pylist() == ["p0", "p1", "p2", "p3"]
    for row, content in enumerate(table.column("image").to_pylist()):
        assert content == (folder / f"{row}.png").read_bytes()


def test_images_inside_the_rows(tmp_path):
    sink = io.BytesIO()
    Image.new("RGB", (3, 3)).save(sink, "PNG")
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": sink.getvalue()}] * 3}, features)
    rows.to_parquet(str(tmp_path / "in.parquet"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in.parquet").rename(tmp_path / "in" / "train.parquet")
    dataset = HubDataset(path=str(tmp_path / "in"), columns=("image",), image="image")
    assert (
        read(copied(dataset, str(tmp_path / "out"), run()))["image"].to_pylist()
        == [sink.getvalue()] * 3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "nope"}, r"\(nope\) cannot be read: .*split"),
        ({"columns": ("caption",)}, "has no column caption; it has id, text, n"),
        ({"path": "nobody/nothing"}, r"nobody/nothing \(train\) cannot be read: .*the network"),
        ({"path": "/no/such/folder"}, "is no folder here, and no name on the hub"),
    ],
)
def test_errors_name_the_data_set(tmp_path, change, message):
    path = write(tmp_path / "in", "parquet")
    dataset = HubDataset(**({"path": path, "columns": ("text",)} | change))
    with pytest.raises(ValueError, match=message) as caught:
        copied(dataset, str(tmp_path / "out"), run())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("saved", {"split": "val"}, r"in \(val\) has the splits train"),
        ("saved splits", {"split": "val"}, r"has the splits train, test"),
        ("saved", {"name": "x"}, "saved to disk, without the name x"),
        ("parquet", {"revision": "main"}, "is a folder, which has no revisions"),
        ("parquet", {"path": "in/train.parquet"}, "is a file; leave out the format"),
    ],
)
def test_nothing_that_is_asked_for_is_passed_over(tmp_path, monkeypatch, kind, change, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", kind)
    dataset = HubDataset(**({"path": "in", "columns": ("text",)} | change))
    with pytest.raises(ValueError, match=message):
        copied(dataset, str(tmp_path / "out"), run())


def test_a_commit_needs_no_network_once_it_is_copied(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    dataset = HubDataset(path="somebody/captions", revision=commit, columns=("text",))
    asked = []

    def load_dataset(path, name, *, revision, split, streaming):
        asked.append((path, name, revision, split, streaming))
        return datasets.Dataset.from_dict(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    first = copied(dataset, str(tmp_path / "out"), run())
    assert copied(dataset, str(tmp_path / "out"), run()) == first
    assert asked == [("somebody/captions", None, commit, "train", True)]
    assert read(first).to_pydict() == {"text": ROWS["text"]}


def test_a_branch_is_asked_for_its_commit(tmp_path, monkeypatch):
    class Info:
        sha = "a" * 40

    class Hub:
        def dataset_info(self, path, revision):
            assert (path, revision) == ("somebody/captions", "main")
            return Info

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(ROWS))
    dataset = HubDataset(path="somebody/captions", revision="main", columns=("text",))
    first = copied(dataset, str(tmp_path / "out"), run())
    assert copied(dataset, str(tmp_path / "out"), run()) == first
    Info.sha = "b" * 40
    assert copied(dataset, str(tmp_path / "out"), run()) != first


def test_many_rows_make_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_datasets, "_BATCH_ROWS", 7)
    monkeypatch.setattr(hub_datasets, "_PART_BYTES", 100)
    target = copied(
        HubDataset(path=write(tmp_path / "in", "saved"), columns=("text",)),
        str(tmp_path / "out"),
        run(),
    )
    assert read(target).column("text").to_pylist() == ROWS["text"]
    assert len(list(Path(target.folder).glob("*.parquet"))) > 2
