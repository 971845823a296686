"""What `webdataset` reads of an export are the rows of the dataset."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.conversations import ConversationSettings, templated
from pipeline.export.webdataset import member_key
from pipeline.schema import EMBEDDING
from tests.export.samples import (
    HOSTILE_IDS,
    as_json,
    captions,
    run,
    same_bits,
    source_rows,
    write_substitutes,
)


def read(folder):
    """All samples as webdataset decodes them."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode())


def test_webdataset_reads_the_rows(rich_dataset, tmp_path):
    run(rich_dataset, tmp_path, "webdataset")
    wanted, found = source_rows(rich_dataset), read(tmp_path)
    assert same_bits([one["npy"] for one in found], [row[EMBEDDING] for row in wanted])
    for one, row in zip(found, wanted, strict=True):
        turns = templated(ConversationSettings(), 0, row["id"], row["text"])
        assert one["json"] == {
            "id": row["id"],
            "text": row["text"],
            "conversations": turns,
            **as_json(row),
        }
        assert one["__key__"] == member_key(row["id"])
    assert {one["json"]["id"] for one in found} == set(HOSTILE_IDS)
    assert len({one["__key__"] for one in found}) == len(HOSTILE_IDS)


def test_tars_are_plain_ustar_of_nobody(rich_dataset, tmp_path):
    run(rich_dataset, tmp_path, "webdataset")
    names = sorted(path.name for path in tmp_path.glob("*.tar"))
    assert names == ["00000.tar", "00001.tar"]
    for name in names:
        data = (tmp_path / name).read_bytes()
        assert len(data) % 10240 == 0
        with tarfile.open(tmp_path / name) as tar:
            members = tar.getmembers()
            for member in members:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname, member.pax_headers) == ("", "", {})
                assert "/" not in member.name
                assert len(member.name) <= 100
                ours = data[member.offset : member.offset + 512]
                assert ours == member.tobuf(tarfile.USTAR_FORMAT)


def test_the_samples_of_two_workers_are_all(dataset, tmp_path):
    from torch.utils.data import DataLoader

    run(dataset, tmp_path, "webdataset")
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    rows = webdataset.WebDataset(tars, shardshuffle=False).decode().to_tuple("json", "npy")
    loader = DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    found = {record["id"]: np.asarray(values) for record, values in loader}
    assert sorted(found) == sorted(row["id"] for row in source_rows(dataset))


@given(st.lists(st.text(min_size=1, max_size=200), min_size=2, max_size=2, unique=True))
def test_no_two_ids_have_one_key(pair):
    first, second = map(member_key, pair)
    assert first != second
    assert all(1 <= len(key) <= 95 and "." not in key and "/" not in key for key in (first, second))


def test_a_key_that_looks_like_a_cut_one_is_another():
    long = "x" * 300
    assert member_key(member_key(long)) != member_key(long)
    assert member_key("plain_ID-7") == "plain_ID-7"
    assert member_key("x" * 95) == "x" * 95
    assert member_key("x" * 96).startswith("x" * 60 + "~")


def test_rows_without_text_have_no_conversation(tmp_path):
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", {"id": captions()["id"]}, null_text=True)
    run(root, tmp_path / "out", "webdataset")
    records = [one["json"] for one in read(tmp_path / "out")]
    assert [(one["text"], one["conversations"]) for one in records] == [(None, None)] * 30


@pytest.mark.parametrize("name", ["bytes", "decimal", "nested"])
def test_values_that_json_has_no_word_for(name, tmp_path):
    import datetime
    import decimal

    values = {
        "bytes": (b"ab\xff", "ab\\xff"),
        "decimal": (decimal.Decimal("1.50"), "1.50"),
        "nested": (
            {"when": datetime.date(2026, 1, 2), "how": [float("inf")]},
            {"when": "2026-01-02", "how": [None]},
        ),
    }
    value, wanted = values[name]
    root = str(tmp_path / "dataset")
    write_substitutes(root, tmp_path / "source", {**captions(2), "more": [value, value]})
    run(root, tmp_path / "out", "webdataset")
    assert [one["json"]["more"] for one in read(tmp_path / "out")] == [wanted, wanted]
