"""WebDataset tars: the rows are what `webdataset` reads, and nothing that is odd passes unseen."""

import bz2
import gzip
import io
import json
import tarfile

import pyarrow as pa
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.storage import Corpus, locations, plan, read_unit, tar_files, tar_scan
from tests.storage.samples import read_all, reasons, text_corpus
from tests.tars import KINDS, special, tar_of, write_tar


def image_corpus(path, **fields):
    return Corpus(path=str(path), modality="image", **fields)


def samples(count, start=0, extensions=("jpg", "txt", "json")):
    """Members of `count` samples, their bytes of many lengths."""
    contents = {
        "jpg": lambda row: f"image {row} ".encode() * (row * 37 % 300),
        "txt": lambda row: f"caption {row}\n".encode(),
        "json": lambda row: json.dumps(
            {"said": f"said {row}", "url": f"u{row}", "n": row}
        ).encode(),
    }
    return [
        (f"{row:06d}.{extension}", contents[extension](row) or b"-")
        for row in range(start, start + count)
        for extension in extensions
    ]


def read_by_webdataset(path):
    """(key, bytes by extension) of all samples."""
    found = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [
        (one["__key__"], {name: data for name, data in one.items() if not name.startswith("__")})
        for one in found
    ]


LONG = "a-long-folder/" * 12
LAYOUTS = {
    "plain": samples(25),
    "folders": [
        special("train", tarfile.DIRTYPE),
        *[(f"train/{name}", data) for name, data in samples(6)],
        special("train/more.d", tarfile.DIRTYPE),
        *[(f"train/more.d/{name}", data) for name, data in samples(7)],
    ],
    "dot folder": [
        special(".", tarfile.DIRTYPE),
        *[(f"./{name}", data) for name, data in samples(5)],
    ],
    "long names": [(f"{LONG}{name}", data) for name, data in samples(9)],
    "odd names": [
        ("__metadata__/info.json", b"{}"),
        ("a.SEG.Png", b"mask"),
        ("a.JPG", b"a"),
        ("README", b"no sample"),
        (".hidden.jpg", b"no sample"),
        ("x/.hidden.jpg", b"has the key x/"),
        ("x/b.jpg", b"b"),
        ("é ü.jpg", b"c"),
        ("empty.jpg", b""),
        ("v1.2/c.jpg", b"d"),
    ],
    "blocks": [(f"{row}.jpg", bytes([row]) * (512 * row)) for row in range(1, 5)],
}


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_and_bytes_are_those_of_webdataset(tmp_path, layout, kind, rows):
    path = write_tar(tmp_path / "a.tar", LAYOUTS[layout], kind)
    expected = read_by_webdataset(path)
    table = read_all(image_corpus(path), rows)
    assert table.column("id").to_pylist() == [key for key, _ in expected]
    images = [files.get("jpg", files.get("hidden.jpg")) for _, files in expected]
    assert table.column("image").to_pylist() == images
    wanted = [None if image else "undecodable_image" for image in images]
    assert reasons(table) == wanted


NAMES = st.builds(
    lambda folder, key, extension: f"{folder}{key}{extension}",
    st.sampled_from(["", "d/", "d.x/", "./", "d/e/", "__m__/", "d/.h/"]),
    st.sampled_from(["a", "b", "ab", "", "__k__", "é", "a b"]),
    st.sampled_from([".jpg", ".JPG", ".txt", ".seg.png", "", ".", ".json"]),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAMES, min_size=1, max_size=12),
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 5),
)
def test_any_names_make_the_samples_that_webdataset_makes(tmp_path, names, kind, rows):
    """Where it refuses a name that is there twice in a sample, the sample is a malformed row."""
    members = [(name, f"{place}{name}".encode()) for place, name in enumerate(names)]
    members.append(("last.jpg", b"last"))
    path = write_tar(tmp_path / "a.tar", members, kind)
    table = read_all(image_corpus(path, image_column="jpg"), rows)
    found = [(row["id"], row["image"]) for row in table.to_pylist() if row["reject"] != "malformed"]
    try:
        expected = read_by_webdataset(path)
    except ValueError:  # a duplicate file name
        assert "malformed" in reasons(table)
        return
    assert table.num_rows == len(expected)
    assert found == [(key, files["jpg"]) for key, files in expected if "jpg" in files]


def test_units_are_ranges_of_bytes_each_read_by_one_request(quiet):
    folder, proxy = quiet
    corpus = image_corpus(write_tar(f"{folder}/a.tar", samples(50)))
    planned = plan(corpus, 20)
    assert [(unit.start, unit.stop) for unit in planned.units] == [(0, 20), (20, 40), (40, 50)]
    edges = [(unit.byte_start, unit.byte_stop) for unit in planned.units]
    assert [start for start, _ in edges[1:]] == [stop for _, stop in edges[:-1]]
    proxy.requests.clear()
    table = read_unit(corpus, planned.units[1])
    assert proxy.requests == {"GET": 1}
    assert table.column("id").to_pylist() == [f"{row:06d}" for row in range(20, 40)]
    proxy.requests.clear()
    plan(corpus, 20)
    assert proxy.requests["GET"] <= 4, "a tar is read once, in large parts"


def test_on_a_store_that_fails_now_and_then(place):
    path = write_tar(locations.join(place, "in", "a.tar"), samples(30))
    write_tar(locations.join(place, "in", "b.tar"), samples(30, start=30))
    table = read_all(image_corpus(locations.join(place, "in")), 13)
    assert table.column("id").to_pylist() == [f"{row:06d}" for row in range(60)]
    assert len(read_all(image_corpus(path), 7)) == 30


def test_what_is_added_changes_only_the_last_unit(tmp_path):
    before = plan(image_corpus(write_tar(tmp_path / "a.tar", samples(25))), 10).units
    after = plan(image_corpus(write_tar(tmp_path / "a.tar", samples(35))), 10).units
    moved = plan(image_corpus(write_tar(tmp_path / "b/c.tar", samples(35))), 10).units
    assert [one.key for one in before[:2]] == [one.key for one in after[:2]]
    assert before[2].key != after[2].key
    assert [one.key for one in after] == [one.key for one in moved]
    assert len({one.key for one in after}) == 4


def test_a_unit_ends_where_it_would_take_too_much_memory(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [(f"{row}.jpg", bytes(3000)) for row in range(10)])
    monkeypatch.setattr(tar_files, "UNIT_BYTES", 8_000)
    assert [unit.rows for unit in plan(image_corpus(path), 2048).units] == [3, 3, 3, 1]
    monkeypatch.setattr(tar_scan, "UNIT_BYTES", 2_999)
    with pytest.raises(ValueError, match=r"a\.tar is not a readable tar: a member of 0 MiB, more"):
        plan(image_corpus(path), 2048)


def test_captions_ids_and_columns_of_the_text_side(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(12))

    def rows(**fields):
        return read_all(text_corpus(path, **fields), 5).to_pylist()

    for column in ("text", "txt", ".txt", "TXT"):
        assert [one["text"] for one in rows(text_column=column)] == [
            f"caption {row}" for row in range(12)
        ]
    passed = rows(text_column="said", id_column="url", passed_through=("n", "url"))
    assert passed[3] == {
        "row": 3,
        "id": "u3",
        "text": "said 3",
        "n": 3,
        "url": "u3",
        "content": None,
        "reject": None,
    }
    assert rows(id_column="n")[3]["id"] == "3"
    with pytest.raises(ValueError, match=r"has no column caption; it has n, said, url, \.jpg"):
        rows(text_column="caption")
    with pytest.raises(ValueError, match=r"has no column more; it has n, said, url, \.jpg"):
        rows(passed_through=("more",))
    with pytest.raises(ValueError, match=r"has no column key; it has"):
        rows(id_column="key")
    with pytest.raises(ValueError, match="webdataset; it holds no embeddings"):
        rows(embedding_column="npy")


def test_types_of_columns_are_those_of_json_lines(tmp_path):
    records = [{"a": row, "b": {"c": [0.5]}, "d": None} for row in range(4)]
    records += [{"a": "x", "b": {"c": [1.5]}}, {"b": 3}, {}]
    members = []
    for row, record in enumerate(records):
        members += [(f"{row}.json", json.dumps(record).encode()), (f"{row}.txt", b"a caption")]
    path = write_tar(tmp_path / "a.tar", members)
    lines = [
        json.dumps({**one, "id": str(row), "text": "a caption"}) for row, one in enumerate(records)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    passed = {"passed_through": ("a", "b", "d")}
    found = read_all(text_corpus(path, **passed))
    expected = read_all(text_corpus(tmp_path / "a.jsonl", **passed))
    assert found.schema == expected.schema
    assert found.drop_columns(["content"]) == expected.drop_columns(["content"])
    assert reasons(found)[4:6] == ["malformed", "malformed"]
    assert found.schema.field("b").type == pa.struct([("c", pa.list_(pa.float64()))])


def test_captions_that_are_no_text(tmp_path):
    members = [
        ("a.txt", b"\xef\xbb\xbfgood\r\n"),
        ("b.txt", b"caf\xe9"),
        ("c.txt", b" \n"),
        ("d.jpg", b"no caption"),
        ("e.json", b'{"text": 3}'),
        ("f.json", b"{"),
        ("g.json", b'{"text": "of the json"}'),
        ("h.json", b'{"text": "caf\xe9"}'),
        ("i.txt", b"x\x00"),
        ("j.txt", b"two\nlines\n"),
    ]
    table = read_all(text_corpus(write_tar(tmp_path / "a.tar", members)))
    assert dict(zip(table.column("id").to_pylist(), reasons(table), strict=True)) == {
        "a": None,
        "b": "not_utf8",
        "c": "empty",
        "d": "malformed",
        "e": "malformed",
        "f": "malformed",
        "g": None,
        "h": "not_utf8",
        "i": "control_characters",
        "j": None,
    }
    assert table.column("text").to_pylist()[0] == "good"
    assert table.column("text").to_pylist()[6] == "of the json"
    assert table.column("content").to_pylist()[3:6] == [b"no caption", b'{"text": 3}', b"{"]


def test_samples_without_one_image_are_rows_in_quarantine(tmp_path):
    """No link is followed, whatever it leads to; nothing that stands in a tar is passed over."""
    members = [
        ("a.jpg", b"good"),
        ("b.txt", b"text alone"),
        special("c.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ("d.json", b"{}"),
        special("d.jpg", tarfile.LNKTYPE, "a.jpg"),
        special("e.jpg", tarfile.FIFOTYPE),
        ("f.jpg", b"one"),
        ("f.png", b"two"),
        ("g.jpg", b"one"),
        ("g.JPG", b"two"),
        ("h.jpg", b"good"),
        ("a.jpg", b"the key again"),
        ("../../etc/i.jpg", b"out"),
        ("/etc/j.jpg", b"out"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    rows = read_all(image_corpus(path)).to_pylist()
    assert [(row["id"], row["reject"]) for row in rows] == [
        ("a", None),
        ("b", "malformed"),
        ("c", "malformed"),
        ("d", "malformed"),
        ("e", "malformed"),
        ("f", "malformed"),
        ("g", "malformed"),
        ("h", None),
        ("a", "duplicate_id"),
        ("../../etc/i", "unsafe_id"),
        ("/etc/j", "unsafe_id"),
    ]
    contents = [row["content"] for row in rows]
    assert contents[1:7] == [b"text alone", None, b"{}", None, b"one", b"two"]
    assert contents[8] == b"the key again"
    # One of several images can be named.
    named = read_all(image_corpus(path, image_column="png")).to_pylist()
    assert [row["id"] for row in named if row["reject"] is None] == ["f"]


def test_a_key_that_is_not_utf8(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"y")], "gnu")
    data = (tmp_path / "a.tar").read_bytes()
    info = tarfile.TarInfo("b.jpg")
    info.size = 1
    broken = info.tobuf(tarfile.GNU_FORMAT).replace(b"b.jpg", b"\xff.jpg")
    total = sum(broken[:148]) + sum(broken[156:]) + 8 * ord(" ")
    broken = broken[:148] + b"%06o\0 " % total + broken[156:]
    (tmp_path / "a.tar").write_bytes(data[:1024] + broken + data[1536:])
    assert reasons(read_all(image_corpus(path))) == [None, "not_utf8"]


def test_tars_without_what_is_asked_for_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(3, extensions=("txt", "json")))
    with pytest.raises(
        ValueError, match=r"no image a sample; its samples have \.json, \.txt: name"
    ):
        plan(image_corpus(path), 10)
    with pytest.raises(ValueError, match=r"has no image \.png; its samples have \.json"):
        plan(image_corpus(path, image_column="png"), 10)
    both = [(f"{row}.{one}", b"x") for row in range(3) for one in ("jpg", "png")]
    path = write_tar(tmp_path / "b.tar", both)
    with pytest.raises(ValueError, match=r"several images a sample; its samples have \.jpg, \.png"):
        plan(image_corpus(path), 10)
    assert reasons(read_all(image_corpus(path, image_column="png"))) == [None] * 3
    for members in ([], [("README", b"x")], [special("a", tarfile.DIRTYPE)]):
        path = write_tar(tmp_path / "c.tar", members)
        with pytest.raises(ValueError, match=r"c\.tar has no sample"):
            plan(image_corpus(path), 10)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_a_tar_cut_short_anywhere_is_unreadable(tmp_path, kind):
    members = [(f"{LONG}{name}", data) for name, data in samples(4)]
    whole = tar_of(members, kind)
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    (unit,) = plan(image_corpus(path), 10).units
    for stop in sorted({*range(0, unit.byte_stop + 512, 171), *range(0, unit.byte_stop + 1, 512)}):
        path.write_bytes(whole[:stop])
        with pytest.raises(ValueError, match=r"a\.tar is not a readable tar: "):
            plan(image_corpus(path), 10)
    path.write_bytes(whole[: unit.byte_stop + 512])
    assert plan(image_corpus(path), 10).rows == 4


def test_no_byte_that_is_wrong_loses_a_sample(tmp_path):
    """Headers have sums; what stands behind the end mark is looked at; the rest is content."""
    whole = tar_of(samples(4), "ustar")
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    keys = read_all(image_corpus(path)).column("id").to_pylist()
    refused = 0
    for place in range(0, len(whole), 83):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = read_all(image_corpus(path)).column("id").to_pylist()
        except ValueError:
            refused += 1
        else:
            assert found == keys, place
    assert refused > 50


def test_unreadable_tars_can_be_skipped(tmp_path):
    write_tar(tmp_path / "a.tar", samples(4))
    (tmp_path / "b.tar").write_bytes(tar_of(samples(4))[:2000])
    with pytest.raises(ValueError, match=r"b\.tar is not a readable tar: unexpected end of data"):
        plan(image_corpus(tmp_path), 10)
    planned = plan(image_corpus(tmp_path), 10, "skip")
    assert planned.rows == 4
    assert [one.path for one in planned.skipped_files] == [str(tmp_path / "b.tar")]


def header(size=0, kind=tarfile.REGTYPE, name="x.jpg"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "a size below zero": header(-1024),
    "a size of exabytes": header(2**62),
    "a name of gigabytes": header(2**40, tarfile.GNUTYPE_LONGNAME),
    "an extended header of gigabytes": header(2**40, tarfile.XHDTYPE),
    "headers without end": header(0, tarfile.XHDTYPE) * 5_000,
    "no header": b"x" * 512,
    "half a header": header()[:200],
    "a long name without a file": header(0, tarfile.GNUTYPE_LONGNAME),
    "sparse without end": header(2**40, tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("what", HOSTILE)
def test_damaged_and_forged_headers_end_in_one_line(tmp_path, what, after):
    good = b"".join(header(3, name=f"{row}.jpg") + b"abc".ljust(512, b"\0") for row in range(after))
    (tmp_path / "a.tar").write_bytes(good + HOSTILE[what] + bytes(10_240))
    with pytest.raises(ValueError, match=r"a\.tar is not a readable tar: ") as told:
        plan(image_corpus(tmp_path), 10)
    assert "\n" not in str(told.value)


def test_a_global_header_that_renames_later_files_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(3), pax_headers={"comment": "a commit"})
    assert read_all(image_corpus(path), 1).column("id").to_pylist() == [
        "000000",
        "000001",
        "000002",
    ]
    path = write_tar(tmp_path / "a.tar", samples(3), pax_headers={"path": "all.jpg"})
    with pytest.raises(ValueError, match="a global header that sets path"):
        plan(image_corpus(path), 10)


def test_tars_that_were_joined_are_refused(tmp_path):
    """Whoever stops at the first end mark, as most do, would lose the rest."""
    (tmp_path / "a.tar").write_bytes(tar_of(samples(2)) + tar_of(samples(2, start=2)))
    with pytest.raises(ValueError, match="more behind its end mark"):
        plan(image_corpus(tmp_path), 10)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.ZST", "a.tar.bz2"])
def test_compressed_tars_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(tar_of(samples(2))))
    for corpus in (tmp_path, tmp_path / name, tmp_path / "*"):
        for form in ("auto", "webdataset"):
            with pytest.raises(ValueError, match="is a compressed tar, which is not read"):
                plan(image_corpus(corpus, format=form), 10)
    write_tar(tmp_path / "b.tar", samples(2))  # beside one that is read too
    with pytest.raises(ValueError, match="is a compressed tar, which is not read"):
        plan(image_corpus(tmp_path), 10)


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress])
def test_compressed_tars_are_refused_by_content(tmp_path, packed):
    (tmp_path / "a.tar").write_bytes(packed(tar_of(samples(2))))
    with pytest.raises(ValueError, match="it is compressed; unpack it"):
        plan(image_corpus(tmp_path), 10)


def test_a_tar_that_changes_while_a_run_is_under_way(tmp_path):
    corpus = image_corpus(write_tar(tmp_path / "a.tar", samples(9)))
    units = plan(corpus, 3).units
    write_tar(tmp_path / "a.tar", [*samples(6), ("x.jpg", b"x"), *samples(2, 7)])
    assert reasons(read_unit(corpus, units[1])) == [None] * 3
    with pytest.raises(ValueError, match=r"a\.tar was changed during the run"):
        read_unit(corpus, units[2])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ValueError, match=r"a\.tar is gone since the run was planned"):
        read_unit(corpus, units[0])


def test_an_unchanged_tar_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.file_facts._RACY_SECONDS", -1e9)
    path = write_tar(tmp_path / "a.tar", samples(5))
    corpus = text_corpus(path, passed_through=("n",))
    first = plan(corpus, 2, cache=str(tmp_path / "cache.json"))
    monkeypatch.setattr(tar_files, "scan_members", None)
    assert plan(corpus, 2, cache=str(tmp_path / "cache.json")) == first


def test_keys_depend_on_what_is_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(2))
    variants = [
        text_corpus(path),
        text_corpus(path, text_column="said"),
        text_corpus(path, id_column="url"),
        text_corpus(path, passed_through=("n",)),
        image_corpus(path),
        image_corpus(path, image_column="jpg"),
    ]
    assert len({plan(one, 10).units[0].key for one in variants}) == len(variants)


def test_what_is_held_back_of_a_tar_stays_small(tmp_path):
    """Until a sample's end is known; folders and empty files have no bytes to pass over."""
    folders = b"".join(header(kind=tarfile.DIRTYPE, name=f"d{row}/") for row in range(2_000))
    data = header(1, name="a.jpg") + b"a".ljust(512, b"\0") + folders + header(name="b.jpg")
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    with (tmp_path / "a.tar").open("rb") as file:
        scan = tar_scan.TarScan(file)
        held = [len(scan._pending) for _ in tar_scan.scan_members(scan)]
    assert max(held) < 4096
    assert plan(image_corpus(tmp_path), 10).rows == 2


def test_a_header_for_all_that_follows_may_end_a_unit(tmp_path):
    whole = tar_of(samples(6))
    for before in (2, 3, 5):
        # Between two samples, where a unit of as many samples ends.
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            place = next(
                info.offset for info in tar.getmembers() if info.name.startswith(f"{before:06d}")
            )
        extra = tarfile.TarInfo.create_pax_global_header({"comment": "packed here"})
        (tmp_path / "a.tar").write_bytes(whole[:place] + extra + whole[place:])
        corpus = image_corpus(tmp_path / "a.tar")
        expected = read_all(corpus, 100).column("image")
        for rows_per_shard in (1, 2, 3, 5):
            table = read_all(corpus, rows_per_shard)
            assert table.column("image").to_pylist() == expected.to_pylist()
