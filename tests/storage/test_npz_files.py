import io
import struct
import zipfile

import numpy as np
import pytest

from pipeline.storage import kept, locations, npz_files, plan, read_unit
from tests.storage.samples import read_all, text_corpus, unit_norm


def archive_of(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(values):
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=True)
    return sink.getvalue()


@pytest.fixture
def fetched(monkeypatch):
    """The bytes that were read of files as ranges."""
    found = []
    real = locations.read_bytes

    def counted(url, start=0, stop=None):
        data = real(url, start, stop)
        found.append(len(data))
        return data

    monkeypatch.setattr(locations, "read_bytes", counted)
    return found


def test_rows_of_a_stored_array_are_read_by_range(tmp_path, fetched):
    np.savez(tmp_path / "a.npz", embedding=unit_norm(100, 16), ids=np.arange(100))
    units = plan(text_corpus(tmp_path), 10).units
    del fetched[:]
    read_unit(text_corpus(tmp_path), units[3])
    assert sorted(fetched) == [10 * 8, 10 * 16 * 4]


def test_a_deflated_array_is_inflated_once_for_its_units(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", embedding=unit_norm(30), ids=np.arange(30))
    np.savez_compressed(tmp_path / "b.npz", embedding=unit_norm(30, seed=1), ids=np.arange(30))
    inflated = []
    real = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: inflated.append(name) or real(self, name)
    )
    corpus = text_corpus(tmp_path)
    read_all(corpus, 5)
    assert inflated == ["embedding.npy", "ids.npy"] * 2
    del inflated[:]
    monkeypatch.setattr(kept, "MOST_KEPT_BYTES", 1000)
    read_all(corpus, 15)
    # The array is too large to be kept now, its ids are not.
    assert sorted(inflated) == ["embedding.npy"] * 4 + ["ids.npy"] * 2


def test_an_array_of_objects_is_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", embedding=unit_norm(3), more=np.array([{}, 1, None], object))
    assert len(read_all(text_corpus(tmp_path))) == 3
    np.savez(tmp_path / "a.npz", embedding=np.array([[{}, 1]], object))
    for fields in ({}, {"embedding_column": "embedding"}):
        with pytest.raises(ValueError, match=r"'embedding' of .*a\.npz holds Python objects"):
            plan(text_corpus(tmp_path, **fields), 5)
    np.savez(tmp_path / "a.npz", embedding=unit_norm(2), ids=np.array([{}, "x"], object))
    with pytest.raises(ValueError, match=r"'ids' of .* holds Python objects"):
        plan(text_corpus(tmp_path), 5)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", embedding=np.zeros((100_000, 64), np.float32))
    inflated = []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: inflated.append(1))
    with pytest.raises(ValueError, match=r"claims 256\d+ bytes in \d+, more than 100 times"):
        plan(text_corpus(tmp_path), 1000)
    assert not inflated
    np.savez_compressed(tmp_path / "a.npz", embedding=unit_norm(100))
    monkeypatch.setattr(npz_files, "MOST_DECODED_BYTES", 1000)
    with pytest.raises(ValueError, match="more than are held in memory"):
        plan(text_corpus(tmp_path), 1000)


def test_a_deflated_array_beside_it_may_be_all_zeros(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz", embedding=unit_norm(10), mask=np.zeros(1_000_000, np.uint8)
    )
    assert len(read_all(text_corpus(tmp_path))) == 10


def test_an_archive_that_lies_about_an_arrays_size(tmp_path):
    data = npy(unit_norm(100))
    archive_of(tmp_path / "a.npz", {"embedding.npy": data}, zipfile.ZIP_DEFLATED)
    whole = (tmp_path / "a.npz").read_bytes()
    sizes = struct.pack("<I", len(data))
    lies = whole.replace(sizes, struct.pack("<I", len(data) - 32))
    assert lies.count(struct.pack("<I", len(data) - 32)) == 2
    (tmp_path / "a.npz").write_bytes(lies)
    with pytest.raises(ValueError, match=r"a\.npz.*(its size does not fit|Bad CRC)"):
        plan(text_corpus(tmp_path), 10)


def test_what_was_damaged_inside_is_found_when_it_is_inflated(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", embedding=unit_norm(1000, 16))
    (unit,) = plan(text_corpus(tmp_path), 2000).units
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(data))
    planned = plan(text_corpus(tmp_path), 2000)
    with pytest.raises(ValueError, match=r"a\.npz is not a readable \.npz"):
        read_unit(text_corpus(tmp_path), planned.units[0])
    assert planned.units[0].key != unit.key


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    archive_of(tmp_path / "a.npz", {"embedding.npy": npy(unit_norm(3))}, method)
    with pytest.raises(ValueError, match=rf"by method {method}; save it with numpy\.savez"):
        plan(text_corpus(tmp_path), 10)


def damaged(data):
    """Ways to be no archive of arrays."""
    central = data.index(b"PK\x01\x02")
    encrypted = bytearray(data)
    encrypted[central + 8] |= 1
    moved = bytearray(data)
    moved[central + 42 : central + 46] = struct.pack("<I", 7)
    return {
        "not a zip": b"\x93NUMPY",
        "empty": b"",
        "cut short": data[:-10],
        "encrypted": bytes(encrypted),
        "not where it says": bytes(moved),
    }


@pytest.mark.parametrize("how", damaged(b"PK\x01\x02" + b" " * 60))
def test_damaged_archives(tmp_path, how):
    archive_of(tmp_path / "a.npz", {"embedding.npy": npy(unit_norm(3))})
    (tmp_path / "a.npz").write_bytes(damaged((tmp_path / "a.npz").read_bytes())[how])
    with pytest.raises(ValueError, match=r"a\.npz") as caught:
        plan(text_corpus(tmp_path), 10)
    assert "\n" not in str(caught.value)


def test_members_that_are_no_arrays_twice_or_too_many(tmp_path, monkeypatch):
    archive_of(tmp_path / "a.npz", {"embedding.npy": b"junk"})
    with pytest.raises(ValueError, match=r"'embedding' of .* is not a readable \.npy"):
        plan(text_corpus(tmp_path), 10)
    archive_of(tmp_path / "a.npz", {"a.npy": npy(unit_norm(3)), "a": npy(unit_norm(3))})
    with pytest.raises(ValueError, match="has the array 'a' twice"):
        plan(text_corpus(tmp_path), 10)
    monkeypatch.setattr(npz_files, "_MOST_MEMBERS", 1)
    with pytest.raises(ValueError, match="has 2 members"):
        plan(text_corpus(tmp_path), 10)


def test_a_stored_member_behind_an_extra_field(tmp_path):
    """numpy writes such fields itself for arrays of more than 4 GiB."""
    info = zipfile.ZipInfo("embedding.npy")
    info.extra = b"\x99\x99\x04\x00abcd"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(info, npy(unit_norm(5)))
    table = read_all(text_corpus(tmp_path), 2)
    np.testing.assert_allclose(table.column("embedding").to_pylist(), unit_norm(5), atol=1e-6)
