import dataclasses
import os

import numpy as np
import pytest

from pipeline.storage import parquet_files, plan, read_unit
from tests.storage.samples import text_corpus, write_parquet

CHANGED = "was changed during the run; start it again"


def replaced(path, write):
    """Write a file again, with another time even where clocks are coarse."""
    write(path)
    os.utime(path, (1, 1))


@pytest.mark.parametrize("kind", ["parquet", "npy", "ids text", "ids npy"])
def test_a_file_replaced_by_one_of_as_many_rows_is_refused(tmp_path, kind):
    values = np.arange(40, dtype=np.float32).reshape(10, 4) + 1
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        write_parquet(path, {"text": [str(row) for row in range(10)]})
    else:
        path = tmp_path / "a.npy"
        np.save(path, values)
    changing = path
    if kind == "ids text":
        changing = tmp_path / "a.ids.txt"
        changing.write_text("".join(f"{row}\n" for row in range(10)))
    if kind == "ids npy":
        changing = tmp_path / "a_ids.npy"
        np.save(changing, np.array([str(row) for row in range(10)]))
    corpus = text_corpus(path)
    units = plan(corpus, 5).units
    before = [read_unit(corpus, unit) for unit in units]
    copy = changing.read_bytes()
    replaced(changing, lambda path: path.write_bytes(copy))  # the same bytes, at another time
    for unit, table in zip(units, before, strict=True):
        assert read_unit(corpus, unit).equals(table)
    write = {
        "parquet": lambda path: write_parquet(path, {"text": [f"x{row}" for row in range(10)]}),
        "npy": lambda path: np.save(path, values + 1),
        "ids text": lambda path: path.write_text("".join(f"{9 - row}\n" for row in range(10))),
        "ids npy": lambda path: np.save(path, np.array([str(9 - row) for row in range(10)])),
    }[kind]
    replaced(changing, write)
    for unit in units:
        with pytest.raises(ValueError, match=CHANGED):
            read_unit(corpus, unit)
        # A store that tells nothing leaves the number of rows to go by.
        assert len(read_unit(corpus, dataclasses.replace(unit, identity=None))) == 5


def test_a_file_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"]})
    corpus = text_corpus(path)
    (unit,) = plan(corpus, 5).units
    whole = parquet_files.read_rows

    def late(*arguments):
        replaced(path, lambda path: write_parquet(path, {"text": ["c", "d"]}))
        return whole(*arguments)

    monkeypatch.setattr(parquet_files, "read_rows", late)
    with pytest.raises(ValueError, match=CHANGED):
        read_unit(corpus, unit)
