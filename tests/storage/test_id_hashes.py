import dataclasses

import numpy as np
import pytest

from pipeline.schema import RejectReason
from pipeline.storage import locations, plan, read_unit, row_hashes
from pipeline.storage.id_hashes import ids_name, read_id_hashes, write_id_hashes
from pipeline.storage.slices import combined
from tests.storage.samples import text_corpus, write_jsonl


@pytest.fixture
def corpus(tmp_path):
    records = [{"id": f"id-{row}", "text": " " if row == 4 else "x"} for row in range(7)]
    return text_corpus(write_jsonl(tmp_path / "a.jsonl", records))


def kept(place, corpus):
    units = plan(corpus, 3).units
    hashes = {unit.key: row_hashes(read_unit(corpus, unit)) for unit in units}
    for unit in units:
        write_id_hashes(place, corpus, unit, hashes[unit.key])
    return units, hashes


def same(found, hashes):
    assert found.keys() == hashes.keys()
    for key, one in hashes.items():
        assert found[key].dtype == np.uint64
        assert found[key].tolist() == one.tolist()


def test_what_was_kept_is_found(place, corpus):
    assert read_id_hashes(place, corpus, plan(corpus, 3).units) == {}
    units, hashes = kept(place, corpus)
    assert [len(hashes[unit.key]) for unit in units] == [3, 2, 1]
    same(read_id_hashes(place, corpus, units), hashes)
    same(read_id_hashes(place, corpus, units[1:2]), {units[1].key: hashes[units[1].key]})


def test_a_unit_of_no_good_row(tmp_path, corpus):
    (unit, *_) = plan(corpus, 3).units
    write_id_hashes(str(tmp_path), corpus, unit, np.empty((0, 2), np.uint64))
    assert read_id_hashes(str(tmp_path), corpus, [unit])[unit.key].shape == (0, 2)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "more", "other"])
def test_damaged_ones_are_left_out(tmp_path, corpus, damage):
    units, hashes = kept(str(tmp_path), corpus)
    path = tmp_path / "ids" / ids_name(corpus, units[0])
    data = path.read_bytes()
    path.write_bytes(
        {
            "flip": data[:40] + bytes([data[40] ^ 1]) + data[41:],
            "cut": data[:-16],
            "empty": b"",
            "more": data + data[-16:],
            "other": (tmp_path / "ids" / ids_name(corpus, units[1])).read_bytes(),
        }[damage]
    )
    same(
        read_id_hashes(str(tmp_path), corpus, units),
        {unit.key: hashes[unit.key] for unit in units[1:]},
    )


def test_other_rules_for_rejects_are_other_files(tmp_path, corpus):
    units, _ = kept(str(tmp_path), corpus)
    wider = [dataclasses.replace(unit, dimension=4) for unit in units]
    assert read_id_hashes(str(tmp_path), corpus, wider) == {}
    shorter = dataclasses.replace(corpus, max_text_bytes=5)
    assert read_id_hashes(str(tmp_path), shorter, units) == {}
    elsewhere = dataclasses.replace(corpus, path="/moved/a.jsonl")
    assert len(read_id_hashes(str(tmp_path), elsewhere, units)) == 3


def test_no_id_reaches_the_file(tmp_path, corpus):
    units, _ = kept(str(tmp_path), corpus)
    names = [entry.name for entry in locations.list_files(str(tmp_path / "ids"))]
    assert sorted(names) == sorted(ids_name(corpus, unit) for unit in units)
    assert not any(b"id-" in path.read_bytes() for path in (tmp_path / "ids").iterdir())


def test_names_of_hashes_that_were_kept_before_stay(tmp_path):
    """Fields and reasons that came later change no name where they are not used."""
    (tmp_path / "a.txt").write_text("x\n")
    corpus = text_corpus(tmp_path / "a.txt")
    (unit,) = plan(corpus, 3).units
    fields = {
        "modality": "text",
        "id_column": "id",
        "text_column": "text",
        "image_column": "image",
        "embedding_column": None,
        "passed_through": (),
        "max_text_bytes": 65_536,
    }
    reasons = sorted(set(RejectReason) - {RejectReason.DUPLICATE_TEXT})
    rules = combined("id hashes", [1, reasons, None, fields])[:16]
    assert ids_name(corpus, unit) == f"{unit.key}-{rules}.hashes"
    called = dataclasses.replace(corpus, called="audio")
    assert ids_name(called, unit) == ids_name(corpus, unit)
    unique = dataclasses.replace(corpus, unique_texts=True)
    assert ids_name(unique, unit) != ids_name(corpus, unit)
