import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage import Corpus, locations, plan, planning
from pipeline.storage.file_facts import CUTTING_VERSION
from tests.storage.embeddings import write_file, write_kind
from tests.storage.samples import text_corpus, unit_norm, write_dataset, write_jsonl, write_parquet


@pytest.fixture
def cut(monkeypatch):
    """The names of the files that were read to be cut."""
    found = []
    for name, real in planning.CUTS.items():

        def counted(corpus, url, rows, real=real):
            found.append(url.rsplit("/", 1)[-1])
            return real(corpus, url, rows)

        monkeypatch.setitem(planning.CUTS, name, counted)
    return found


@pytest.fixture
def aged(monkeypatch):
    """Files count as settled at once, as if planning came much later."""
    monkeypatch.setattr("pipeline.storage.file_facts._RACY_SECONDS", -1e9)


def write_corpus(folder, kind):
    folder.mkdir(exist_ok=True)
    for name in "ab":
        if kind == "text":
            (folder / f"{name}.txt").write_text("".join(f"{name} {row}\n" for row in range(7)))
        elif kind == "jsonl":
            records = [{"id": f"{name}{row}", "text": "x", "more": row} for row in range(7)]
            write_jsonl(folder / f"{name}.jsonl", records)
        elif kind == "parquet":
            more = pa.array([{"x": [1.5]}] * 7)
            columns = {"id": [f"{name}{row}" for row in range(7)], "text": ["x"] * 7, "more": more}
            write_parquet(folder / f"{name}.parquet", columns, row_group_size=4)
        else:
            np.save(folder / f"{name}.npy", unit_norm(7, seed=ord(name)))
            (folder / f"{name}.ids.txt").write_text("".join(f"{name}{row}\n" for row in range(7)))
    return text_corpus(folder, passed_through=("more",) if kind in {"jsonl", "parquet"} else ())


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "npy"])
def test_an_unchanged_corpus_is_not_read_again(tmp_path, cut, aged, kind):
    corpus = write_corpus(tmp_path / "in", kind)
    cache = str(tmp_path / "plans" / "text.json")
    first = plan(corpus, 3, cache=cache)
    assert len(cut) == 2
    written = Path(cache).stat().st_mtime_ns
    shown = []
    again = plan(corpus, 3, cache=cache, progress=lambda done, of: shown.append((done, of)))
    assert again == first == plan(corpus, 3)
    assert len(cut) == 4  # by the plan without a cache
    assert Path(cache).stat().st_mtime_ns == written
    assert shown == [(1, 2), (2, 2)]


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "npy"])
def test_one_changed_file_is_one_read(tmp_path, cut, aged, kind):
    corpus = write_corpus(tmp_path / "in", kind)
    cache = str(tmp_path / "cache.json")
    plan(corpus, 3, cache=cache)
    changed = next(path for path in (tmp_path / "in").iterdir() if path.stem == "b")
    changed.write_bytes((tmp_path / "in" / changed.name.replace("b", "a", 1)).read_bytes())
    del cut[:]
    plan(corpus, 3, cache=cache)
    assert cut == [changed.name]
    plan(corpus, 3, cache=cache)
    assert cut == [changed.name]


@pytest.mark.parametrize("kind", ["npz", "npz deflated", "safetensors", "pickle", "clip-retrieval"])
def test_what_embeddings_are_read_with_is_watched(tmp_path, cut, aged, kind):
    values, ids = unit_norm(14), [f"r{row}" for row in range(14)]
    write_kind(tmp_path / "in", kind, values, ids)
    corpus, cache = Corpus(path=str(tmp_path / "in"), modality="image"), str(tmp_path / "c.json")
    first = plan(corpus, 3, cache=cache)
    assert len(cut) == 2
    assert plan(corpus, 3, cache=cache) == first
    assert len(cut) == 2
    # The embeddings stay byte for byte where the ids stand in a file of their own.
    write_file(tmp_path / "in", kind, 1, values[7:], ids[:7])
    if kind in ("npz", "npz deflated", "safetensors"):
        (tmp_path / "in" / "part0.ids.txt").write_text("".join(f"x{row}\n" for row in range(7)))
    del cut[:]
    changed = plan(corpus, 3, cache=cache)
    assert len(cut) == (1 if kind in ("pickle", "clip-retrieval") else 2)
    assert changed == plan(corpus, 3)
    assert changed.digest != first.digest


def test_ids_that_change_come_or_go(tmp_path, cut, aged):
    corpus = write_corpus(tmp_path / "in", "npy")
    cache = str(tmp_path / "cache.json")
    plan(corpus, 3, cache=cache)
    (tmp_path / "in" / "a.ids.txt").write_text("".join(f"z{row}\n" for row in range(7)))
    del cut[:]
    assert plan(corpus, 3, cache=cache) == plan(corpus, 3)
    assert cut == ["a.npy", "a.npy", "b.npy"]
    for name in "ab":
        (tmp_path / "in" / f"{name}.ids.txt").unlink()
    found = plan(corpus, 3, cache=cache)
    assert found == plan(corpus, 3)
    assert not found.has_ids


def test_a_single_file_by_name(tmp_path, cut, aged):
    write_corpus(tmp_path / "in", "text")
    corpus = text_corpus(tmp_path / "in" / "a.txt")
    first = plan(corpus, 3, cache=str(tmp_path / "cache.json"))
    assert plan(corpus, 3, cache=str(tmp_path / "cache.json")) == first
    assert cut == ["a.txt"]


def test_other_settings_are_another_plan(tmp_path, cut, aged, monkeypatch):
    folder = tmp_path / "in"
    write_corpus(folder, "parquet")
    cache = str(tmp_path / "cache.json")
    variants = [
        (text_corpus(folder), 3),
        (text_corpus(folder), 4),
        (text_corpus(folder, id_column="more.x", text_column="id"), 4),
        (text_corpus(folder, text_column="id"), 4),
        (text_corpus(folder, passed_through=("more",)), 4),
    ]
    for corpus, rows in variants:
        try:
            expected = plan(corpus, rows)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)[:20]):
                plan(corpus, rows, cache=cache)
        else:
            assert plan(corpus, rows, cache=cache) == expected
    monkeypatch.setattr("pipeline.storage.file_facts.CUTTING_VERSION", CUTTING_VERSION + 1)
    del cut[:]
    plan(corpus, rows, cache=cache)
    assert len(cut) == 2


def test_a_file_that_was_written_just_now_is_read_again(tmp_path, cut):
    corpus = write_corpus(tmp_path / "in", "text")
    cache = str(tmp_path / "cache.json")
    plan(corpus, 3, cache=cache)
    plan(corpus, 3, cache=cache)
    assert len(cut) == 4
    assert not Path(cache).exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, aged, monkeypatch):
    corpus = write_corpus(tmp_path / "in", "text")
    cache = str(tmp_path / "cache.json")
    real = planning.CUTS["text"]

    def raced(corpus, url, rows):
        facts = real(corpus, url, rows)
        if url.endswith("a.txt"):
            with Path(url).open("a") as file:
                file.write("late\n")
        return facts

    with monkeypatch.context() as patch:
        patch.setitem(planning.CUTS, "text", raced)
        plan(corpus, 3, cache=cache)
    assert plan(corpus, 3, cache=cache) == plan(corpus, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"{",
        lambda data: b"[]",
        lambda data: b'{"settings": 1}',
        lambda data: data.replace(b'\\"has_ids\\": false', b'\\"has_ids\\": true'),
        lambda data: data.replace(b", 3, ", b", 2, "),
        lambda data: b"[" * 100_000,
        lambda data: json.dumps({**json.loads(data), "entries": None}).encode(),
    ],
)
def test_a_damaged_cache_is_ignored_and_written_anew(tmp_path, cut, aged, damage):
    corpus = write_corpus(tmp_path / "in", "text")
    cache = tmp_path / "cache.json"
    first = plan(corpus, 3, cache=str(cache))
    whole = cache.read_bytes()
    assert damage(whole) != whole
    cache.write_bytes(damage(whole))
    assert plan(corpus, 3, cache=str(cache)) == first
    assert len(cut) == 4
    assert cache.read_bytes() == whole


def test_a_place_that_cannot_be_written_costs_only_time(tmp_path, aged):
    corpus = write_corpus(tmp_path / "in", "text")
    (tmp_path / "file").write_text("")
    assert plan(corpus, 3, cache=str(tmp_path / "file" / "cache.json")) == plan(corpus, 3)


def test_files_that_cannot_be_read_are_not_remembered(tmp_path, aged):
    corpus = write_corpus(tmp_path / "in", "parquet")
    cache = str(tmp_path / "cache.json")
    (tmp_path / "in" / "b.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"b\.parquet is not a readable"):
        plan(corpus, 3, cache=cache)
    skipped = plan(corpus, 3, "skip", cache=cache)
    assert skipped == plan(corpus, 3, "skip")
    with pytest.raises(ValueError, match=r"b\.parquet is not a readable"):
        plan(corpus, 3, cache=cache)


def test_no_path_stands_in_it(tmp_path, aged):
    write_corpus(tmp_path / "in", "npy")
    ids = tmp_path / "in" / "a.ids.txt"
    corpus = Corpus(path=str(tmp_path / "in" / "a.npy"), modality="text", ids_path=str(ids))
    plan(corpus, 3, cache=str(tmp_path / "cache.json"))
    assert str(tmp_path) not in (tmp_path / "cache.json").read_text()


def test_on_any_store(place, cut):
    """Objects have entity tags, so that none needs to settle."""
    source, cache = locations.join(place, "in"), locations.join(place, "plans", "text.json")
    for name in "ab":
        locations.write_bytes(locations.join(source, f"{name}.txt"), f"{name}\nx\n".encode())
    first = plan(text_corpus(source), 1, cache=cache)
    assert plan(text_corpus(source), 1, cache=cache) == first
    assert cut == (["a.txt", "b.txt"] if "://" in place else ["a.txt", "b.txt"] * 2)
    locations.write_bytes(locations.join(source, "b.txt"), b"b\ny\n")
    del cut[:]
    assert plan(text_corpus(source), 1, cache=cache).digest != first.digest
    assert cut == (["b.txt"] if "://" in place else ["a.txt", "b.txt"])


def test_shards_of_ours_name_what_they_were_made_from(tmp_path):
    root = str(tmp_path / "out")
    _, receipts = write_dataset(root, tmp_path / "in")
    units = plan(Corpus(path=root, modality="text"), 10).units
    sources = {(unit.source_path, unit.source_start, unit.source_stop): unit.path for unit in units}
    assert sources == {
        tuple(one.source[name] for name in ("path", "start", "stop")): f"{root}/{one.path}"
        for one in receipts
    }
    assert {path for path, _, _ in sources} == {str(tmp_path / "in" / "captions.jsonl")}


def edits(folder, draw):
    """Change a folder at random; contents are few and of equal sizes, so that they collide."""
    contents = ["a\nb\nc\n", "b\na\nc\n", "x\ny\nz\n", "a\nb\nc\nd\n", "longer line\n"]
    files = sorted(folder.glob("*.txt"))
    one = draw.choice(files) if files else None
    kind = draw.choice(["write", "new", "append", "delete", "rename", "touch", "swap", "backdate"])
    if kind == "new" or one is None:
        (folder / f"{draw.choice('abcdef')}.txt").write_text(draw.choice(contents))
    elif kind == "write":
        one.write_text(draw.choice(contents))
    elif kind == "append":
        with one.open("a") as file:
            file.write("more\n")
    elif kind == "delete":
        one.unlink()
    elif kind == "rename":
        one.rename(folder / f"{draw.choice('abcdef')}.txt")
    elif kind == "touch":
        one.touch()
    elif kind == "swap":
        other = draw.choice(files)
        ours, theirs = one.read_bytes(), other.read_bytes()
        one.write_bytes(theirs)
        other.write_bytes(ours)
    else:  # other content of the same size at the same time of modification
        before = one.stat()
        one.write_bytes(one.read_bytes().swapcase())
        os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("seed", range(12))
def test_with_a_cache_and_without_is_the_same(tmp_path, aged, cut, seed):
    folder, cache = tmp_path / "in", str(tmp_path / "cache.json")
    folder.mkdir()
    draw = random.Random(seed)
    for name in "abcd":
        (folder / f"{name}.txt").write_text("a\nb\nc\n")
    reused = 0
    for _ in range(25):
        for _ in range(draw.randint(0, 3)):
            edits(folder, draw)
        if not any(folder.iterdir()):
            continue
        time.sleep(0.01)  # two ticks of the filesystem's clock: `aged` takes that rule away
        expected = plan(text_corpus(folder), 2)
        del cut[:]
        assert plan(text_corpus(folder), 2, cache=cache) == expected
        reused += len(list(folder.iterdir())) - len(cut)
    assert reused > 10
