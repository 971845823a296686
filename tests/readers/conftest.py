"""Fixtures that the tests of the readers share."""

from __future__ import annotations

import pytest

from tests.readers.samples import write_dataset
from tests.readers.streams import ROWS


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a dataset of the rows ROWS; to be left alone."""
    path = str(tmp_path_factory.mktemp("dataset"))
    write_dataset(path, ROWS)
    return path
