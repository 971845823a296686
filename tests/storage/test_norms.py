import json

import numpy as np
import pytest

from pipeline.schema import EMBEDDING
from pipeline.storage import Receipt, plan, read_unit, write_unit
from pipeline.storage.columns import Rejects, unit_rows
from pipeline.storage.norms import Norms
from tests.storage.samples import text_corpus, unit_norm, write_dataset


def norms_of(values):
    found = Norms()
    unit_rows(values, len(values), values.shape[1], Rejects(len(values)), found)
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_rows_of_any_precision_are_of_unit_length(dtype):
    found = norms_of(unit_norm(2000, 1024).astype(dtype))
    assert found.off == 0
    assert found.to_mapping() == {}
    assert found.sentence(2000, "x") == ""


def test_rows_of_other_lengths_are_counted_and_unusable_ones_are_not():
    values = unit_norm(1000).astype(np.float64)
    values[3] *= 12
    values[900] *= 0.25
    values[5], values[6], values[7, 1] = 0, np.nan, np.inf
    values[8] *= 1e250
    found = norms_of(values)
    assert found.off == 3
    np.testing.assert_allclose([found.least, found.greatest], [0.25, 1e250], rtol=1e-6)
    assert Norms.of_mapping(json.loads(json.dumps(found.to_mapping()))) == found
    assert found.sentence(997, "a.npy") == (
        "3 of 997 embeddings of a.npy had another length than 1 (norms between 0.25 and 1e+250); "
        "they are normalised"
    )
    huge = norms_of(np.full((2, 8), 1.7e308))
    assert json.dumps(huge.to_mapping(), allow_nan=False)


def test_merging_is_counting_together():
    values = unit_norm(50).astype(np.float64) * np.linspace(0.5, 2, 50)[:, None]
    whole = norms_of(values)
    parts = norms_of(values[:10]).merge(norms_of(values[10:])).merge(Norms())
    assert parts.off == whole.off > 0
    np.testing.assert_allclose(
        [parts.least, parts.greatest], [whole.least, whole.greatest], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("scale", "refused"), [(2e4, True), (1e-5, True), (100, False), (1, False)]
)
def test_lengths_that_no_encoder_gives_are_refused(scale, refused):
    found = norms_of(unit_norm(20) * scale)
    if refused:
        with pytest.raises(ValueError, match=r"embeddings of a\.npy have norms between .*column"):
            found.require_plausible("a.npy")
        # One row among good ones is a row, and the run goes on.
        found = found.merge(norms_of(unit_norm(20)))
    found.require_plausible("a.npy")


def test_receipts_say_what_a_dataset_was_made_of(tmp_path):
    np.save(tmp_path / "a.npy", np.concatenate([unit_norm(5) * 3, unit_norm(5, seed=1)]))
    corpus = text_corpus(tmp_path / "a.npy")
    receipts = []
    for unit in plan(corpus, 5).units:
        norms = Norms()
        table = read_unit(corpus, unit, norms=norms)
        receipts.append(
            write_unit(
                str(tmp_path / "out"),
                unit=unit,
                fingerprint="f",
                table=table,
                dtype="float32",
                metadata={},
                seconds={},
                norms=norms.to_mapping(),
            )
        )
        assert EMBEDDING in table.column_names
    assert [Receipt.from_json(one.to_json()) for one in receipts] == receipts
    assert [one.norms.get("off") for one in receipts] == [5, None]
    found = Norms.of_receipts(receipts)
    assert found.off == 5
    # A receipt that says nothing is of rows of length 1.
    np.testing.assert_allclose([found.least, found.greatest], [1, 3], rtol=1e-6)


@pytest.mark.parametrize(
    "norms",
    [{"off": 1}, {"off": 1, "least": 1, "more": 2}, {"off": "1", "least": 1, "greatest": 2}],
)
def test_norms_that_no_receipt_has(tmp_path, norms):
    _, receipts = write_dataset(str(tmp_path / "out"), tmp_path / "in")
    forged = {**json.loads(receipts[0].to_json()), "norms": norms}
    with pytest.raises(ValueError, match="norms are not three numbers"):
        Receipt.from_json(json.dumps(forged))
    old = {name: one for name, one in forged.items() if name != "norms"}
    assert Receipt.from_json(json.dumps(old)) == receipts[0]


def test_a_stored_dataset_is_not_counted(tmp_path):
    write_dataset(str(tmp_path / "out"), tmp_path / "in")
    corpus = text_corpus(tmp_path / "out")
    norms = Norms()
    for unit in plan(corpus, 100).units:
        read_unit(corpus, unit, norms=norms)
    assert norms == Norms()
