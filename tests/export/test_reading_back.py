"""What was exported as embeddings is a source again, with the same rows."""

import numpy as np
import pytest

from pipeline.schema import EMBEDDING
from pipeline.storage import Corpus
from tests.export.samples import run, source_rows
from tests.storage.samples import read_all, reasons


@pytest.mark.parametrize(("layout", "side"), [("revision", "text"), ("npy", "image")])
def test_an_export_is_read_back(rich_dataset, tmp_path, layout, side):
    run(rich_dataset, tmp_path, layout)
    table = read_all(Corpus(path=str(tmp_path), modality=side), 7)
    wanted = source_rows(rich_dataset)
    assert reasons(table) == [None] * len(wanted)
    assert table.column("id").to_pylist() == [row["id"] for row in wanted]
    found = np.array(table.column(EMBEDDING).to_pylist())
    # Rounded to float16, they are not quite of unit length, and are made so.
    np.testing.assert_allclose(found, [row[EMBEDDING] for row in wanted], atol=1e-3)
    if layout == "npy":
        assert table.column("text").to_pylist() == [row["text"] for row in wanted]
