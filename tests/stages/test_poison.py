"""Rows that make an encoder raise: found, rejected alone, told from an encoder that is broken."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import ENVELOPE, REJECT
from pipeline.stages.embed import Embed
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.stages.envelope import DeviceLostError, Envelope
from pipeline.stages.poison import encode_without_poison, poison_limit
from pipeline.stages.read import ReadUnit
from pipeline.storage import Corpus, embeddings_of, plan


def encoder_of(poison: set[int]) -> Any:
    """Return an encoder of integers that raises on some of them."""

    def encode(inputs: Sequence[int]) -> list[int]:
        if poison.intersection(inputs):
            raise RuntimeError("illegal caption")
        return [2 * one for one in inputs]

    return encode


@given(rows=st.integers(9, 300), data=st.data())
def test_exactly_the_poisonous_rows_are_found(rows: int, data: st.DataObject):
    limit = min(poison_limit(rows), rows - 1)
    poison = data.draw(st.sets(st.integers(0, rows - 1), max_size=limit))
    encoded, mask = encode_without_poison(encoder_of(poison), range(rows), lambda: False)
    assert set(np.flatnonzero(mask)) == poison
    assert encoded == [2 * row for row in range(rows) if row not in poison]


def test_many_bad_rows_are_not_the_rows_fault():
    assert (poison_limit(10), poison_limit(1000)) == (8, 50)
    with pytest.raises(RuntimeError, match="illegal caption"):
        encode_without_poison(encoder_of(set(range(51))), range(1000), lambda: True)


def test_rows_that_are_all_bad_are_told_from_an_encoder_that_is():
    encoded, mask = encode_without_poison(encoder_of({0, 1}), range(2), lambda: True)
    assert (encoded, mask.tolist()) == ([], [True, True])
    with pytest.raises(RuntimeError, match="illegal caption"):
        encode_without_poison(encoder_of({0, 1}), range(2), lambda: False)


def test_rows_that_fail_together_only_are_not_rejected():
    def encode(inputs: Sequence[int]) -> list[int]:
        if len(inputs) > 5:
            raise RuntimeError("too many")
        return list(inputs)

    with pytest.raises(RuntimeError, match="too many"):
        encode_without_poison(encode, range(10), lambda: True)


def test_little_memory_is_no_fault_of_a_row():
    calls = []

    def encode(inputs: Sequence[int]) -> list[int]:
        calls.append(len(inputs))
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        encode_without_poison(encode, range(10), lambda: True)
    assert calls == [10]


FLAT = """
import numpy as np

class Flat:
    calls = 0

    def describe(self):
        return {"model": "flat", "fingerprint": "1", "dimension": 4, "context_length": None}

    def encode_texts(self, texts):
        Flat.calls += 1
        return np.ones(4 * len(texts)), np.zeros(len(texts), bool)

    encode_images = encode_texts
"""


class Fragile(Embed):
    """Embeds with an encoder that raises on the word poison, and for good after the word fatal."""

    broken = False

    def _encode(self, inputs: Sequence[Any]) -> Any:
        self.broken |= any("fatal" in one for one in inputs)
        if self.broken or any("poison" in one for one in inputs):
            raise RuntimeError("device-side assert triggered")
        embeddings, truncated = super()._encode(inputs)
        for row, one in enumerate(inputs):
            if "not a number" in one:
                embeddings[row] = np.nan
        return embeddings, truncated


@pytest.fixture(scope="module")
def fragile() -> Fragile:
    return Fragile(modality="text", encoder=EncoderOptions(model="demo"))


def block_of(path: Path, captions: Sequence[str]) -> pa.Table:
    path.write_text("".join(f"{caption}\n" for caption in captions))
    corpus = Corpus(path=str(path), modality="text")
    (unit,) = plan(corpus, 1000).units
    return ReadUnit(corpus)(pa.table({ENVELOPE: [unit.to_json()]}))


def test_poisonous_captions_are_rejected_alone(fragile: Fragile, tmp_path: Path):
    captions = [f"a red circle {row}" for row in range(20)]
    sound, _ = Envelope.open(fragile(block_of(tmp_path / "sound.txt", captions[1:])))
    table, envelope = Envelope.open(
        fragile(block_of(tmp_path / "c.txt", ["poison", *captions[1:], "not a number"]))
    )
    assert envelope.failure is None
    assert table.column(REJECT).to_pylist() == ["unencodable", *[None] * 19, "unencodable"]
    assert table.column("content").to_pylist()[0] == b"poison"
    # The others are what they are without it, to the bit.
    np.testing.assert_array_equal(embeddings_of(table)[1:20], embeddings_of(sound))
    assert not embeddings_of(table)[[0, 20]].any()


def test_a_unit_of_poison_fails_whole(fragile: Fragile, tmp_path: Path):
    block = fragile(block_of(tmp_path / "c.txt", ["poison"] * 9 + ["fine"] * 9))
    _, envelope = Envelope.open(block)
    assert (block.num_rows, block.column_names) == (1, [ENVELOPE])
    assert envelope.failure is not None
    assert envelope.failure.stage == "embed"
    assert envelope.failure.reason == "RuntimeError: device-side assert triggered"
    many = fragile(block_of(tmp_path / "d.txt", ["not a number"] * 9 + ["fine"] * 9))
    failure = Envelope.open(many)[1].failure
    assert failure is not None
    assert failure.reason.startswith("the encoder gives no embedding for 9 of 18 rows")


def test_an_encoder_that_returns_what_is_none_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "flat_encoder.py").write_text(FLAT)
    monkeypatch.syspath_prepend(tmp_path)
    embed = Embed(modality="text", encoder=EncoderOptions(model="python:flat_encoder:Flat"))
    block = embed(block_of(tmp_path / "c.txt", ["a", "b", "c"]))
    _, envelope = Envelope.open(block)
    assert envelope.failure is not None
    assert envelope.failure.reason == (
        "WrongEmbeddingsError: encode_texts of encoder.model python:flat_encoder:Flat returned "
        "embeddings of shape (12,) for 3 rows; with the dimension that it describes it must be "
        "(3, 4)"
    )
    assert sys.modules["flat_encoder"].Flat.calls == 1


def test_an_encoder_that_stays_broken_gives_its_process_up(tmp_path: Path):
    fragile = Fragile(modality="text", encoder=EncoderOptions(model="demo"))
    fragile(block_of(tmp_path / "first.txt", ["fine"]))
    with pytest.raises(DeviceLostError, match="works no longer: device-side assert"):
        fragile(block_of(tmp_path / "c.txt", [f"good {row}" for row in range(20)] + ["fatal"]))
