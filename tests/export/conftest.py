"""Fixtures that the export tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.samples import rich_columns, write_substitutes


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a dataset of three shards; to be left alone."""
    folder = tmp_path_factory.mktemp("substitutes")
    root = str(folder / "dataset")
    write_substitutes(root, Path(folder / "source"))
    return root


@pytest.fixture(scope="session", params=["float16", "float32"])
def rich_dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a dataset of hostile ids and texts and of many columns; to be left alone."""
    folder = tmp_path_factory.mktemp("rich")
    root = str(folder / "dataset")
    write_substitutes(root, Path(folder / "source"), rich_columns(), dtype=request.param)
    return root
