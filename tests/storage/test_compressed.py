import gzip
import json

import pyarrow as pa
import pytest

from pipeline.formats import compression, file_format
from pipeline.storage import compressed, locations, plan, read_unit
from tests.storage.samples import read_all, text_corpus, write_parquet

CAPTIONS = [f"caption number {row}, of a thing" for row in range(500)]


def pack(path, data, kind):
    with pa.CompressedOutputStream(str(path), kind) as file:
        file.write(data)


@pytest.fixture
def opened(monkeypatch):
    """The URLs that were opened as lines."""
    found = []
    real = compressed.open_lines

    def counted(url):
        found.append(url)
        return real(url)

    monkeypatch.setattr(compressed, "open_lines", counted)
    return found


@pytest.mark.parametrize(("ending", "kind"), [("gz", "gzip"), ("zst", "zstd")])
def test_the_same_rows_from_every_file(tmp_path, ending, kind):
    records = [{"id": f"r{row}", "text": text} for row, text in enumerate(CAPTIONS)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (tmp_path / "plain.jsonl").write_bytes(lines)
    pack(tmp_path / f"a.jsonl.{ending}", lines, kind)
    columns = {name: [record[name] for record in records] for name in ("id", "text")}
    write_parquet(tmp_path / "a.parquet", columns)
    plain = read_all(text_corpus(tmp_path / "plain.jsonl"), 64)
    packed = read_all(text_corpus(tmp_path / f"a.jsonl.{ending}"), 64)
    stored = read_all(text_corpus(tmp_path / "a.parquet"), 64)
    assert packed.equals(plain)
    assert stored.select(["id", "text", "reject"]).equals(plain.select(["id", "text", "reject"]))
    # The content names the unit, however it is packed.
    units = [
        [unit.key for unit in plan(text_corpus(tmp_path / name), 64).units]
        for name in ("plain.jsonl", f"a.jsonl.{ending}")
    ]
    assert units[0] == units[1]


def test_units_in_turn_unpack_a_file_once(tmp_path, opened):
    pack(tmp_path / "a.txt.gz", "\n".join(CAPTIONS).encode(), "gzip")
    corpus = text_corpus(tmp_path)
    units = plan(corpus, 50).units
    texts = [read_unit(corpus, unit).column("text").to_pylist() for unit in units]
    assert [text for unit in texts for text in unit] == CAPTIONS
    assert len(opened) == 1
    backwards = [read_unit(corpus, unit).column("text").to_pylist() for unit in reversed(units)]
    assert backwards == texts[::-1]


def test_a_file_of_the_same_name_is_read_anew(tmp_path, opened):
    path = tmp_path / "a.txt.gz"
    for turn in range(2):
        captions = [f"{turn} {text}" for text in CAPTIONS]
        pack(path, "\n".join(captions).encode(), "gzip")
        units = plan(text_corpus(path), 300).units
        # The last unit alone: it lies behind where the reading of the first file stopped.
        found = read_unit(text_corpus(path), units[turn])
        assert found.column("text").to_pylist() == captions[300 * turn : 300 * turn + 300]
    assert len(opened) == 2


def test_files_end_to_end_are_one(tmp_path):
    parts = [gzip.compress(b"a\nb\n"), gzip.compress(b"c\n")]
    (tmp_path / "a.txt.gz").write_bytes(b"".join(parts))
    assert read_all(text_corpus(tmp_path)).column("text").to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(("ending", "kind"), [("gz", "gzip"), ("zst", "zstd")])
def test_damage_is_an_unreadable_file(tmp_path, ending, kind):
    path = tmp_path / f"a.txt.{ending}"
    pack(path, "\n".join(CAPTIONS).encode(), kind)
    whole = path.read_bytes()
    for data in (whole[:-5], whole[: len(whole) // 2], b"no such thing", b"\0" * 100):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.txt.{ending} is damaged or cut short"):
            plan(text_corpus(path), 10)
    (tmp_path / "b.txt").write_text("good\n")
    found = plan(text_corpus(tmp_path), 10, "skip")
    assert [one.path.rsplit("/", 1)[-1] for one in found.skipped_files] == [path.name]


def test_a_store_that_fails_is_no_damage(tmp_path, monkeypatch):
    pack(tmp_path / "a.txt.gz", b"a\n", "gzip")

    class Failing:
        closed = False

        def read(self, size):
            raise locations.StoreError("the store failed")

        def readable(self):
            return True

        def close(self):
            pass

    monkeypatch.setattr(locations, "open_for_reading", lambda url: Failing())
    with pytest.raises(locations.StoreError, match="the store failed"):
        plan(text_corpus(tmp_path / "a.txt.gz"), 10)


def test_endings():
    named = {
        "a.txt.gz": ("text", "gzip"),
        "A.JSONL.ZST": ("jsonl", "zstd"),
        "https://host/a.csv.gz?key=x": ("csv", "gzip"),
        "a.tsv": ("csv", None),
        "a.parquet.gz": (None, "gzip"),
        "a.npy.zst": (None, "zstd"),
        "a.gz": (None, "gzip"),
    }
    assert {url: (file_format(url), compression(url)) for url in named} == named
