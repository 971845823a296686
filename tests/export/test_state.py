"""What a target says of itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from pipeline.export.state import Identity, PartReceipt, Target, checksums, receipt_path
from pipeline.storage import locations

IDENTITY = Identity(
    dataset="/data", version="000001-01234567", content="0", format="hf", parts=2, options={"a": 1}
)
SHA256 = hashlib.sha256(b"abc").hexdigest()
PART = PartReceipt(rows=3, files={"file": (3, SHA256)}, entries=7, notes={"x": [1]})


def test_identities_read_back():
    assert Identity.from_json(IDENTITY.to_json()) == IDENTITY
    said = json.loads(IDENTITY.to_json())
    assert said["fingerprint"] == IDENTITY.fingerprint
    with pytest.raises(ValueError, match="its options were changed"):
        Identity.from_json(json.dumps({**said, "options": {"a": 2}}).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "mds"}, r"another format \(hf, not mds\)"),
        ({"version": "000002-01234567"}, "go on with --version"),
        ({"content": "1"}, "another content"),
        ({"parts": 3}, "another number of parts"),
        ({"schema_version": 2}, "another schema version"),
        ({"options": {"a": 2, "b": 1}}, r"other options \(a, b\)"),
    ],
)
def test_what_differs_is_told(change, said):
    with pytest.raises(ValueError, match=said):
        IDENTITY.check_same(dataclasses.replace(IDENTITY, **change), "target")
    IDENTITY.check_same(dataclasses.replace(IDENTITY, dataset="/moved"), "target")


def test_receipts_read_back():
    assert PartReceipt.from_json(PART.to_json()) == PART
    assert PART.bytes == 3
    assert PART.is_whole({"file": 3, "other": 1})
    assert not PART.is_whole({"file": 2})


@pytest.mark.parametrize("facts", [3, [3], [3, "0" * 63], ["3", SHA256], [3, None]])
def test_receipts_without_bytes_and_sha256_are_none(facts):
    value = {**json.loads(PART.to_json()), "files": {"file": facts}}
    with pytest.raises(ValueError, match="without bytes and sha256"):
        PartReceipt.from_json(json.dumps(value).encode())


def test_whole_parts_of_a_target(place):
    target = Target(locations.join(place, "out"))
    assert target.sizes() == {}
    assert target.identity({}) is None
    locations.write_bytes(target.file("file"), b"abc")
    for number, content in enumerate((PART.to_json(), b"{}", PART.to_json()[:-1])):
        locations.write_bytes(target.file(receipt_path(number)), content)
    locations.write_bytes(target.file("lease/000001.json"), b"{}")
    sizes = target.sizes()
    assert "lease/000001.json" not in sizes
    assert target.whole_parts(4, sizes) == {0: PART}
    assert target.whole_parts(4, {**sizes, "file": 4}) == {}


def test_checksums_are_in_the_order_of_paths():
    lines = checksums(IDENTITY, [PART], PartReceipt(rows=3, files={"README.md": (3, SHA256)}))
    paths = [line.split("  ")[1] for line in lines.decode().splitlines()]
    assert paths == ["README.md", "export.json", "file", "parts/00000.json", "parts/index.json"]
    assert lines.decode().splitlines()[2] == f"{SHA256}  file"
