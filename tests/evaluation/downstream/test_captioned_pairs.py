"""Captioned pairs are read from .npz and Parquet, and refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.evaluation.downstream.captioned_pairs import CaptionedPairs, read_captioned_pairs

ROWS, WIDTH = 7, 5
CAPTIONS = [f"caption {row} naïve 猫" for row in range(ROWS)]


def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "text": generator.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "caption": np.array(CAPTIONS),
    }


def npz(folder: Path, **changes: Any) -> str:
    """Write an .npz; a change to None leaves an array out."""
    values = {name: one for name, one in {**arrays(), **changes}.items() if one is not None}
    path = folder / "pairs.npz"
    np.savez(path, **values)
    return str(path)


def parquet(folder: Path, **changes: Any) -> str:
    """Write Parquet; a change to None leaves a column out."""
    values = arrays()
    columns: dict[str, Any] = {
        "image": pa.array(values["image"].tolist(), pa.list_(pa.float32())),
        "text": pa.array(values["text"].tolist(), pa.list_(pa.float32())),
        "caption": pa.array(CAPTIONS),
        "other": pa.array(range(ROWS)),
    }
    columns |= changes
    path = folder / "pairs.parquet"
    table = pa.table({name: one for name, one in columns.items() if one is not None})
    pq.write_table(table, path, row_group_size=3)
    return str(path)


def check(found: CaptionedPairs, path: str) -> None:
    assert found.path == path
    assert found.captions == CAPTIONS
    for name in ("image", "text"):
        expected = torch.from_numpy(arrays()[name])
        expected = expected / expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(getattr(found, name), expected)
        assert getattr(found, name).dtype == torch.float32


def test_an_npz_is_read(tmp_path: Path):
    path = npz(tmp_path)
    check(read_captioned_pairs(path), path)
    path = npz(tmp_path, image=arrays()["image"].astype(np.float64) * 7)
    check(read_captioned_pairs(path), path)


@pytest.mark.parametrize(
    ("lists", "strings"),
    [
        (pa.list_(pa.float32()), pa.string()),
        (pa.large_list(pa.float64()), pa.large_string()),
        (pa.list_(pa.float32(), WIDTH), pa.string()),
    ],
)
def test_parquet_is_read_whatever_its_lists_are(tmp_path: Path, lists: Any, strings: Any):
    values = arrays()
    path = parquet(
        tmp_path,
        image=pa.array(values["image"].tolist(), lists),
        text=pa.array(values["text"].tolist(), lists),
        caption=pa.array(CAPTIONS, strings),
    )
    check(read_captioned_pairs(path), path)


def test_the_digest_is_of_embeddings_and_captions(tmp_path: Path):
    digests = {
        read_captioned_pairs(path).digest()
        for path in (npz(tmp_path), parquet(tmp_path), npz(tmp_path, image=4 * arrays()["image"]))
    }
    assert len(digests) == 1
    for changes in (
        {"image": arrays()["image"][::-1]},
        {"text": arrays()["image"]},
        {"caption": np.array([*CAPTIONS[:-1], "other"])},
    ):
        digests.add(read_captioned_pairs(npz(tmp_path, **changes)).digest())
    assert len(digests) == 4


def spoilt(name: str, value: float) -> Any:
    array = arrays()[name]
    array[2] = value
    return array


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"caption": None}, "has no caption; it has image, text"),
        ({"image": None, "text": None}, "has no image and no text; it has caption"),
        ({"caption": np.array(CAPTIONS, dtype=object)}, "no object arrays"),
        ({"caption": np.arange(ROWS)}, "caption must be one array of strings, not int64"),
        ({"caption": np.array([CAPTIONS])}, "caption must be one array of strings"),
        ({"caption": np.array([one.encode() for one in CAPTIONS])}, "caption must be one array"),
        ({"caption": np.array(CAPTIONS[1:])}, "there are 6 captions; all need equal rows"),
        ({"image": arrays()["image"][1:]}, "all need equal rows"),
        ({"text": arrays()["text"][:, 1:]}, "equal widths"),
        ({"caption": np.array(["", "  ", *CAPTIONS[2:]])}, "2 captions are empty"),
        ({"image": spoilt("image", np.nan)}, "image has 1 rows that are zero or not finite"),
        ({"text": spoilt("text", np.inf)}, "text has 1 rows that are zero or not finite"),
        ({"text": spoilt("text", 0)}, "zero or not finite, the first at 2"),
        ({"image": np.ones((ROWS, WIDTH), int)}, "image must be a two-dimensional array of floats"),
        ({"image": np.ones(ROWS)}, "image must be a two-dimensional array of floats"),
    ],
)
def test_an_npz_that_cannot_be_used_is_refused(tmp_path: Path, changes: Any, said: str):
    refused(npz(tmp_path, **changes), said)


def refused(path: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_captioned_pairs(path)
    message = str(caught.value)
    assert said in message
    assert path in message
    assert "\n" not in message


def lists(change: Callable[[list[Any]], Any], kind: Any = None) -> Any:
    rows = arrays()["image"].tolist()
    change(rows)
    return pa.array(rows, kind or pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"caption": None}, "has no caption; it has image, text, other"),
        ({"image": None}, "has no image; it has"),
        ({"image": pa.array(range(ROWS))}, "image must be a column of lists of floats, not int64"),
        ({"image": lists(lambda rows: rows[3].pop())}, "rows of different widths, or missing"),
        ({"image": lists(lambda rows: rows.__setitem__(3, None))}, "different widths, or missing"),
        (
            {"image": lists(lambda rows: rows.__setitem__(3, None), pa.list_(pa.float32(), WIDTH))},
            "different widths, or missing",
        ),
        ({"image": lists(lambda rows: rows[2].__setitem__(1, None))}, "zero or not finite"),
        ({"image": lists(lambda rows: rows[2].__setitem__(1, float("inf")))}, "not finite"),
        ({"image": lists(lambda rows: [row.clear() for row in rows])}, "zero or not finite"),
        ({"image": pa.array([["a"]] * ROWS)}, "image must be a two-dimensional array of floats"),
        ({"text": pa.array([[1, 2]] * ROWS)}, "text must be a two-dimensional array of floats"),
        ({"text": pa.array([[1.0, 2.0]] * ROWS)}, "equal widths"),
        ({"caption": pa.array(range(ROWS))}, "caption must be a column of strings, not int64"),
        ({"caption": pa.array([*CAPTIONS[1:], None])}, "1 captions are missing"),
        ({"caption": pa.array([*CAPTIONS[1:], " "])}, "1 captions are empty"),
    ],
)
def test_parquet_that_cannot_be_used_is_refused(tmp_path: Path, changes: Any, said: str):
    refused(parquet(tmp_path, **changes), said)


def test_parquet_without_rows_is_read_as_none(tmp_path: Path):
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), WIDTH)):
        columns = {name: pa.array([], kind) for name in ("image", "text")}
        path = tmp_path / "empty.parquet"
        pq.write_table(pa.table({**columns, "caption": pa.array([], pa.string())}), path)
        assert read_captioned_pairs(str(path)).captions == []


@pytest.mark.parametrize("name", ["pairs.npz", "pairs.parquet"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str):
    path = tmp_path / name
    refused(str(path), "")
    path.write_bytes(b"neither of them, by far, whatever its name may say")
    refused(str(path), "is not")


def test_a_single_array_is_no_archive(tmp_path: Path):
    path = tmp_path / "pairs.npz"
    with path.open("wb") as file:
        np.save(file, arrays()["image"])
    refused(str(path), "is not an .npz archive")
