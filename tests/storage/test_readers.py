"""A dataset is read by others, in a process that never imports Ray."""

import subprocess
import sys
import textwrap

import pytest

from tests.storage.samples import write_dataset

READERS = {
    "pyarrow": """
        import pyarrow.dataset
        table = pyarrow.dataset.dataset(root + "/data", format="parquet").to_table()
        rows = table.to_pylist()
    """,
    "pandas": """
        import pandas
        rows = pandas.read_parquet(root + "/data").to_dict("records")
    """,
    "duckdb": """
        import duckdb
        found = duckdb.sql(f"select * from '{root}/data/*.parquet'")
        names = [column[0] for column in found.description]
        rows = [dict(zip(names, row)) for row in found.fetchall()]
    """,
    "datasets": """
        import datasets
        datasets.disable_progress_bars()
        rows = list(
            datasets.load_dataset(
                "parquet", data_files=root + "/data/*.parquet", split="train", cache_dir=root + "/c"
            )
        )
        folder = datasets.load_dataset(root, split="train", cache_dir=root + "/c")
        assert len(folder) == 27
    """,
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("reader", READERS)
def test_readers_without_ray(tmp_path, reader, dtype):
    write_dataset(str(tmp_path / "out"), tmp_path / "in", dtype=dtype)
    script = f"root = {str(tmp_path / 'out')!r}\n" + textwrap.dedent(READERS[reader])
    script += textwrap.dedent("""
        import math, sys
        assert len(rows) == 27, len(rows)
        for row in rows:
            assert isinstance(row["id"], str) and row["text"].startswith("caption ")
            assert len(row["embedding"]) == 8
            assert abs(math.sqrt(sum(float(x) ** 2 for x in row["embedding"])) - 1) < 2e-3
            assert row["conversations"][0]["from"] == "human"
        assert "ray" not in sys.modules
    """)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_storage_itself_imports_neither_ray_nor_torch():
    script = "import sys, pipeline.storage; assert not {'ray', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
