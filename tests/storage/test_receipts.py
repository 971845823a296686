import json

import pytest

from pipeline.storage import Receipt
from pipeline.storage.receipts import parsed, printable


def receipt(**fields):
    whole = {"unit": "u", "fingerprint": "f", "path": "data/x.parquet", "rows": 3, "bytes": 10}
    return Receipt(**{**whole, "sha256": "0" * 64, "seconds": {"encode": 0.5}, **fields})


def test_there_and_back():
    one = receipt(quarantined={"empty": 1}, source={"path": "é.jsonl", "start": 0, "stop": 4})
    assert Receipt.from_json(one.to_json()) == one
    assert "é.jsonl" in one.to_json()


def test_files_are_the_shards_and_their_sizes():
    assert receipt().files == {"data/x.parquet": 10}
    both = receipt(quarantine_path="quarantine/x.parquet", quarantine_bytes=7)
    assert both.files == {"data/x.parquet": 10, "quarantine/x.parquet": 7}


@pytest.mark.parametrize("name", ["rows", "bytes", "quarantine_rows", "quarantine_bytes"])
@pytest.mark.parametrize("value", [-1, 2**41, 10**4000, 1.0, True, "3", None])
def test_counts_that_cannot_be(name, value):
    forged = {**json.loads(receipt().to_json()), name: value}
    with pytest.raises(ValueError, match=f"not a receipt: {name}"):
        Receipt.from_json(json.dumps(forged))


def test_billions_of_rows_are_refused_and_a_large_shard_is_not():
    values = json.loads(receipt().to_json())
    with pytest.raises(ValueError, match="rows is not between"):
        Receipt.from_dict({**values, "rows": 2_000_000_000})
    assert Receipt.from_dict({**values, "rows": 2**20, "bytes": 2**33}).rows == 2**20


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("quarantined", {"empty": -1}, "below 0"),
        ("quarantined", {"empty": 1.5}, "no integer"),
        ("quarantined", {"empty": True}, "no integer"),
        ("seconds", {"encode": "long"}, "a time"),
        ("seconds", {"encode": -1}, "a time"),
        ("path", "data/\x1b[2J.parquet", "not the name of a shard"),
        ("path", "data/x\n- evil.parquet", "not the name of a shard"),
        ("quarantine_path", "quarantine/\u202ex", "not the name of a shard"),
    ],
)
def test_values_that_cannot_be(name, value, what):
    with pytest.raises(ValueError, match=what):
        Receipt.from_dict({**json.loads(receipt().to_json()), name: value})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_that_is_none(number):
    text = receipt().to_json().replace("0.5", number)
    with pytest.raises(ValueError, match="holds the number"):
        Receipt.from_json(text)
    with pytest.raises(ValueError, match="JSON compliant"):
        receipt(seconds={"encode": float(number)}).to_json()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 99_999, b"9" * 9999])
def test_what_is_no_json(data):
    with pytest.raises(ValueError):
        parsed(data, "receipt")


def test_errors_cannot_drive_the_terminal_either():
    with pytest.raises(ValueError, match=r"unknown \\x1b\[2J$"):
        Receipt.from_json(json.dumps({**json.loads(receipt().to_json()), "\x1b[2J": 1}))


def test_printable():
    assert printable("caption é 猫 [bold].jsonl") == "caption é 猫 [bold].jsonl"
    assert printable("\x1b]0;x\x07\n\r\u202e\u200b\ud800") == (
        "\\x1b]0;x\\x07\\n\\r\\u202e\\u200b\\ud800"
    )


def test_the_key_that_the_plan_gave():
    assert receipt().planned_unit == "u"
    renamed = receipt(planned="as planned")
    assert Receipt.from_json(renamed.to_json()).planned_unit == "as planned"
    old = json.loads(receipt().to_json())
    del old["planned"]  # as earlier releases wrote it
    assert Receipt.from_dict(old) == receipt()
    with pytest.raises(ValueError, match="planned has the wrong type"):
        Receipt.from_dict({**old, "planned": None})
