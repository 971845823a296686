"""Folders of image files: which are read, under which ids, in which units, and what goes wrong."""

import os
import time
from pathlib import Path

import pytest

from pipeline.storage import Corpus, Unit, image_files, locations, plan, planning, read_unit
from tests.storage.samples import read_all, reasons, text_corpus

NAMES = ("a.jpg", "b.JPEG", "below/c.png", "below/deeper/d.WebP", "e.tif", "f.jp2")


def image_corpus(path, **fields):
    return Corpus(path=str(path), modality="image", **fields)


def write_images(folder, names=NAMES):
    """Write files that hold their own names."""
    for name in names:
        locations.write_bytes(locations.join(str(folder), name), f"bytes of {name}".encode())
    return image_corpus(folder)


@pytest.fixture
def cut(monkeypatch):
    """The names of the files that were read to be cut."""
    found = []

    def counted(corpus, url, rows):
        found.append(url.rsplit("/", 1)[-1])
        return image_files.cut_image(corpus, url, rows)

    monkeypatch.setitem(planning.CUTS, "images", counted)
    return found


def test_a_file_is_a_row_named_by_its_place_below_the_folder(place):
    folder = locations.join(place, "photos")
    corpus = write_images(folder)
    others = ("a.txt", "a.json", "below/c.txt", ".hidden.jpg", "README", "model.heic")
    write_images(folder, others)
    for path in (folder, f"{folder}/"):
        planned = plan(image_corpus(path), 4)
        assert [unit.members for unit in planned.units] == [NAMES[:4], NAMES[4:]]
        assert [(unit.start, unit.stop, unit.rows) for unit in planned.units] == [
            (0, 4, 4),
            (4, 6, 2),
        ]
        assert (planned.rows, planned.has_ids, planned.dimension) == (6, True, None)
        assert all(Unit.from_json(unit.to_json()) == unit for unit in planned.units)
    table = read_all(corpus, 4)
    assert table.column("id").to_pylist() == list(NAMES)
    assert table.column("image").to_pylist() == [f"bytes of {name}".encode() for name in NAMES]
    assert reasons(table) == [None] * 6


def test_units_are_the_same_wherever_the_folder_lies_and_however_it_is_named(tmp_path, place):
    keys = [unit.key for unit in plan(write_images(tmp_path / "one"), 2).units]
    assert len(set(keys)) == 3
    write_images(locations.join(place, "two"))
    for path in ("two", "two/", "two/**"):
        assert [one.key for one in plan(image_corpus(f"{place}/{path}"), 2).units] == keys
    below = plan(image_corpus(f"{place}/two/below/**/*.*"), 10).units[0]
    assert below.members == ("c.png", "deeper/d.WebP")
    assert plan(image_corpus(f"{place}/two/*.j*"), 10).units[0].members == ("a.jpg", "f.jp2")
    (one,) = plan(image_corpus(f"{place}/two/below/c.png"), 10).units
    assert (one.members, one.path) == (("c.png",), f"{place}/two/below")
    table = read_unit(image_corpus(f"{place}/two/below/c.png"), one)
    assert table.column("image").to_pylist() == [b"bytes of below/c.png"]


def test_names_and_bytes_are_both_content(tmp_path):
    keys = {plan(write_images(tmp_path / "one"), 10).units[0].key}
    (tmp_path / "one/a.jpg").rename(tmp_path / "one/aa.jpg")
    keys.add(plan(image_corpus(tmp_path / "one"), 10).units[0].key)
    (tmp_path / "one/aa.jpg").write_bytes(b"bytes of b.jpg")
    keys.add(plan(image_corpus(tmp_path / "one"), 10).units[0].key)
    assert len(keys) == 3


def test_a_unit_ends_where_it_would_take_too_much_memory(tmp_path, monkeypatch):
    for name, size in (("a", 40), ("b", 40), ("c", 90), ("d", 10), ("e", 0), ("f", 1)):
        (tmp_path / f"{name}.png").write_bytes(bytes(size))
    monkeypatch.setattr(image_files, "UNIT_BYTES", 100)
    units = plan(image_corpus(tmp_path), 2048).units
    assert [unit.members for unit in units] == [
        ("a.png", "b.png"),
        ("c.png", "d.png", "e.png"),
        ("f.png",),
    ]
    monkeypatch.setattr(image_files, "UNIT_BYTES", 80)
    with pytest.raises(ValueError, match=r"c\.png has 0 MiB; an image file of more than"):
        plan(image_corpus(tmp_path), 2048)
    with pytest.raises(ValueError, match=r"c\.png has"):
        plan(image_corpus(tmp_path / "c.png"), 2048)
    planned = plan(image_corpus(tmp_path), 2048, "skip")
    assert planned.rows == 5
    assert [one.path for one in planned.skipped_files] == [str(tmp_path / "c.png")]


def test_an_empty_file_and_names_that_could_do_harm_are_rejected_rows(tmp_path):
    deep = "/".join(["n" * 200] * 6)
    corpus = write_images(tmp_path, ["a.jpg", "\\b.jpg", "c d é.jpg", f"{deep}/e.jpg"])
    (tmp_path / "f.jpg").write_bytes(b"")
    rows = {row["id"]: row for row in read_all(corpus).to_pylist()}
    found = {name[:10]: row["reject"] for name, row in rows.items()}
    assert found == {
        "a.jpg": None,
        "\\b.jpg": "unsafe_id",
        "c d é.jpg": None,
        "n" * 10: "unsafe_id",
        "f.jpg": "undecodable_image",
    }
    assert rows["\\b.jpg"]["content"] == b"bytes of \\b.jpg"
    assert rows["f.jpg"]["content"] == b""


def test_each_side_reads_what_it_can_of_a_folder_of_both(tmp_path):
    write_images(tmp_path, ["a.jpg", "b.jpg", "b.json"])
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"caption {name}\n")
    assert plan(image_corpus(tmp_path), 10).units[0].members == ("a.jpg", "b.jpg")
    assert plan(image_corpus(tmp_path, format="images"), 10).rows == 2
    texts = read_all(text_corpus(tmp_path))
    assert texts.column("text").to_pylist() == ["caption a", "caption b"]
    with pytest.raises(ValueError, match=r"is images; it holds no captions, which are read from"):
        plan(text_corpus(tmp_path, format="images"), 10)
    with pytest.raises(ValueError, match=r"is images; it holds no embeddings"):
        plan(image_corpus(tmp_path, format="images", embedding_column="e"), 10)
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several formats \(images, parquet\)"):
        plan(image_corpus(tmp_path), 10)
    with pytest.raises(ValueError, match=r"no file ending in \.jpg"):
        plan(image_corpus(tmp_path / "*.json", format="images"), 10)


def test_a_file_that_goes_or_changes_while_a_run_is_under_way(place):
    corpus = write_images(locations.join(place, "in"))
    (unit,) = plan(corpus, 10).units
    changed = locations.join(corpus.path, "below/c.png")
    original = locations.read_bytes(changed)
    locations.write_bytes(changed, original)  # written anew, the same
    assert reasons(read_unit(corpus, unit)) == [None] * 6
    locations.write_bytes(changed, original[::-1])
    with pytest.raises(
        ValueError, match=r"an image file of .*in \(of those from a\.jpg to"
    ) as told:
        read_unit(corpus, unit)
    assert "was changed during the run; start it again" in str(told.value)
    locations.remove(changed)
    with pytest.raises(ValueError, match=r"in/below/c\.png is gone since the run was planned"):
        read_unit(corpus, unit)
    assert plan(corpus, 10).rows == 5


def test_a_file_that_goes_while_a_run_is_planned(tmp_path, monkeypatch):
    corpus = write_images(tmp_path)

    def late(corpus, url, rows):
        if url.endswith("a.jpg"):
            Path(url).unlink(missing_ok=True)
        return image_files.cut_image(corpus, url, rows)

    monkeypatch.setitem(planning.CUTS, "images", late)
    with pytest.raises(ValueError, match=r"no file .*a\.jpg"):
        plan(corpus, 10)
    (tmp_path / "a.jpg").write_bytes(b"x")
    planned = plan(corpus, 10, "skip")
    assert planned.units[0].members == NAMES[1:]
    assert [one.path for one in planned.skipped_files] == [str(tmp_path / "a.jpg")]


def test_links_are_read_if_they_lead_to_files(tmp_path):
    corpus = write_images(tmp_path / "in", ["a.jpg"])
    (tmp_path / "b.jpg").write_bytes(b"elsewhere")
    (tmp_path / "in/b.jpg").symlink_to(tmp_path / "b.jpg")
    assert read_all(corpus).column("image").to_pylist() == [b"bytes of a.jpg", b"elsewhere"]
    (tmp_path / "in/c.jpg").symlink_to(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"no file .*c\.jpg"):
        plan(corpus, 10)


def test_only_files_that_are_new_are_read_by_the_next_plan(tmp_path, cut, monkeypatch):
    monkeypatch.setattr("pipeline.storage.file_facts._RACY_SECONDS", -1e9)
    corpus, cache = write_images(tmp_path / "in"), str(tmp_path / "cache.json")
    first = plan(corpus, 2, cache=cache)
    assert len(cut) == len(NAMES)
    assert plan(corpus, 2, cache=cache) == first
    assert len(cut) == len(NAMES)
    write_images(tmp_path / "in", ["0.jpg"])  # every group is another now
    added = plan(corpus, 2, cache=cache)
    assert cut[len(NAMES) :] == ["0.jpg"]
    assert added == plan(corpus, 2)
    assert added.units[0].members == ("0.jpg", "a.jpg")
    before = (tmp_path / "in/e.tif").stat()
    (tmp_path / "in/e.tif").write_bytes(b"bytes of E.TIF")
    os.utime(tmp_path / "in/e.tif", ns=(before.st_atime_ns, before.st_mtime_ns))
    del cut[:]
    assert plan(corpus, 2, cache=cache) == plan(corpus, 2) != added
    assert cut[0] == "e.tif"


def test_requests_of_a_store(quiet):
    """Each object is one request, whether planning or reading; waiting is shared by threads."""
    folder, proxy = quiet
    corpus = write_images(folder, [f"{number:03d}.jpg" for number in range(40)])
    plan(corpus, 16)
    proxy.requests.clear()
    planned = plan(corpus, 16)
    listing = proxy.requests["GET"] - 40
    assert 0 < listing <= 4
    proxy.requests.clear()
    read_unit(corpus, planned.units[0])
    assert proxy.requests == {"GET": 16}


def test_a_store_that_fails_is_no_unreadable_file(quiet, monkeypatch):
    folder, proxy = quiet
    corpus = write_images(folder)
    (unit,) = plan(corpus, 10).units
    monkeypatch.setattr("pipeline.storage.retrying.TRIES", 2)
    monkeypatch.setattr("pipeline.storage.retrying.DEADLINE_S", 0.2)
    proxy.fail_next("403 AccessDenied", 3, method="GET", containing="c.png")
    with pytest.raises(locations.StoreError, match=r"c\.png"):
        plan(corpus, 10, "skip")
    proxy.reset()
    proxy.share = 0
    proxy.fail_next("403 AccessDenied", 3, method="GET", containing="c.png")
    with pytest.raises(locations.StoreError, match=r"c\.png"):
        read_unit(corpus, unit)


def test_a_folder_with_signs_of_globs_in_its_name(tmp_path):
    write_images(tmp_path / "photos [2024]*", ["a.jpg", "b/c.jpg"])
    (unit,) = plan(image_corpus(tmp_path / "photos [2024]*"), 10).units
    assert unit.members == ("a.jpg", "b/c.jpg")
    (one,) = plan(image_corpus(tmp_path / "photos [2024]*" / "a.jpg"), 10).units
    assert one.members == ("a.jpg",)


def test_a_store_that_fails_is_not_asked_for_the_rest(tmp_path, monkeypatch):
    corpus = write_images(tmp_path, [f"{number:03d}.jpg" for number in range(200)])
    (unit,) = plan(corpus, 200).units
    asked = []

    def failing(url):
        asked.append(url)
        time.sleep(0.02)
        raise locations.StoreError(f"cannot read {url}")

    monkeypatch.setattr(locations, "read_bytes", failing)
    with pytest.raises(locations.StoreError, match=r"000\.jpg"):
        read_unit(corpus, unit)
    assert len(asked) < 100
