"""A corpus of captions that changes from night to night, and the nights over it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.cluster.lifecycle import run_flow
from pipeline.cluster.nightly import nightly
from pipeline.cluster.session import ray_session
from pipeline.cluster.synthesize import synthesize
from pipeline.config import RunConfig, parse_config
from pipeline.report.console import Reporter
from pipeline.schema import EMBEDDING, ID
from pipeline.storage import locations, open_manifest, read_shard, verify
from tests.cluster.samples import overlaid

ROWS_PER_UNIT = 25


class Nights:
    """A folder or URL with a caption corpus in `text/` and everything else in `run/`."""

    def __init__(self, root: str, images: str, captions: Sequence[str]) -> None:
        self.root = root
        self.images = images
        self._captions = iter(captions)
        self.files: dict[str, list[dict[str, str]]] = {}

    @property
    def dataset(self) -> str:
        return f"{self.root}/run/dataset"

    def new_rows(self, name: str, units: int, captions: Sequence[str] = ()) -> None:
        """Write a file of so many units of captions not used before, or of those given."""
        rows = units * ROWS_PER_UNIT
        texts = list(captions[:rows]) or [next(self._captions) for _ in range(rows)]
        lines = [{"id": f"{name}-{row:03d}", "text": text} for row, text in enumerate(texts)]
        self.write(name, lines)

    def write(self, name: str, lines: list[dict[str, str]]) -> None:
        self.files[name] = lines
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        locations.write_bytes(f"{self.root}/text/{name}.jsonl", data)

    def edit(self, name: str, row: int) -> None:
        """Give one row another caption."""
        lines = list(self.files[name])
        lines[row] = {**lines[row], "text": next(self._captions)}
        self.write(name, lines)

    def delete(self, name: str) -> None:
        del self.files[name]
        locations.remove(f"{self.root}/text/{name}.jsonl")

    def config(self, run: str = "run", /, **sections: Any) -> RunConfig:
        base: dict[str, Any] = {
            "text": {"path": f"{self.root}/text"},
            "image": {"path": self.images},
            "align": {"method": "bures-gromov"},
            "output": {"path": f"{self.root}/{run}"},
            "units": {"rows_per_shard": ROWS_PER_UNIT, "images_per_shard": 48},
            "nightly": {"min_rows": 2 * ROWS_PER_UNIT},
            "ray": {"encode_actors": 1},
        }
        return parse_config(overlaid(base, sections))

    def run(self, reporter: Reporter | None = None, /, **sections: Any) -> dict[str, Any]:
        """Have a night on the Ray that is there."""
        config = self.config(**sections)
        return run_flow(config, "nightly", nightly, reporter or Reporter(quiet=True))

    def check(self, number: int) -> None:
        """Compare the dataset with a build of today's corpus from nothing by the same aligner."""
        aligner = f"{self.root}/run/aligner"
        config = self.config(f"scratch-{number}", aligner={"path": aligner})
        with ray_session(config):
            built = synthesize(config, Reporter(quiet=True))
        assert rows_digest(self.dataset) == rows_digest(built.path)
        assert verify(self.dataset).problems == ()
        wanted = {line["id"] for lines in self.files.values() for line in lines}
        assert ids_of(self.dataset) == wanted


def rows_digest(root: str) -> tuple[int, str]:
    """Return the number of rows and a digest of ids and embedding bytes, by id."""
    rows = []
    for receipt in open_manifest(root).receipts:
        table = read_shard(root, receipt, columns=[ID, EMBEDDING])
        width = table.schema.field(EMBEDDING).type.list_size
        values = table.column(EMBEDDING).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        names = table.column(ID).to_pylist()
        for name, embedding in zip(names, values.reshape(-1, width), strict=True):
            rows.append(name.encode() + b"\0" + embedding.tobytes())
    return len(rows), hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def ids_of(root: str) -> set[str]:
    """Return all ids of a dataset."""
    receipts = open_manifest(root).receipts
    return {
        name for one in receipts for name in read_shard(root, one, columns=[ID])[ID].to_pylist()
    }


class KilledAfter(Reporter):
    """A quiet reporter that ends the run, as a signal would, after so many units are written."""

    def __init__(self, units: int) -> None:
        super().__init__(quiet=True)
        self._left = units

    def event(self, name: str, /, **fields: Any) -> None:
        super().event(name, **fields)
        if name == "unit_written":
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


@contextmanager
def times_unchanged(root: str) -> Iterator[None]:
    """Check that no shard there is now is written again inside (its time, on any store)."""
    before = _identities(root)
    yield
    after = _identities(root)
    assert {name: after.get(name) for name in before} == before


def _identities(root: str) -> dict[str, Any]:
    folder = locations.join(root, "data")
    filesystem, _ = locations.resolve(folder)
    filesystem.invalidate_cache()
    return {
        entry.name: filesystem.modified(locations.resolve(entry.url)[1])
        for entry in locations.list_files(folder)
    }
