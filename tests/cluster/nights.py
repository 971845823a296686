"""A corpus of captions that changes from night to night, and the nights over it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import torch
from botocore.exceptions import BotoCoreError

from pipeline.benchmarks.faults import digest_of, rows_digest
from pipeline.cluster.corpora import changed_units, encoder_options, plan_corpus
from pipeline.cluster.lifecycle import run_flow
from pipeline.cluster.nightly import nightly
from pipeline.cluster.session import ray_session
from pipeline.cluster.sources import source_corpus
from pipeline.cluster.synthesize import synthesize
from pipeline.config import RunConfig, parse_config
from pipeline.report.console import Reporter
from pipeline.schema import EMBEDDING, ENVELOPE, ID
from pipeline.stages.embed import Embed
from pipeline.stages.envelope import Envelope
from pipeline.stages.read import ReadUnit
from pipeline.storage import embeddings_of, locations, open_manifest, plan, read_shard, verify
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

    def pending(self) -> dict[str, int]:
        """Return what a dry run says of the next night."""
        config, reporter = self.config(), Reporter(quiet=True)
        corpus = source_corpus(config, "text", reporter)
        planned = plan_corpus(config, corpus, "text", reporter, remember=False)
        return changed_units(config, corpus, planned)

    def check(self, *, on_ray: bool = False) -> None:
        """Compare the dataset with a build of today's corpus from nothing by the same aligner.

        The stages are those of a run; without Ray they take a fifth of the time.
        """
        config = self.config("scratch", aligner={"path": f"{self.root}/run/aligner"})
        if on_ray:
            with ray_session(config):
                found = rows_digest(synthesize(config, Reporter(quiet=True)).path)
        else:
            found = digest_of(self._built(config))
        assert rows_digest(self.dataset) == found
        assert verify(self.dataset).problems == ()
        wanted = {line["id"] for lines in self.files.values() for line in lines}
        assert ids_of(self.dataset) == wanted

    def _built(self, config: RunConfig) -> Iterator[pa.Table]:
        """Yield the rows of each unit of the corpus, read, encoded and corrected here."""
        corpus = source_corpus(config, "text", Reporter(quiet=True))
        threads = torch.get_num_threads()
        embed = Embed(
            modality="text",
            encoder=encoder_options(config),
            aligner=config.aligner.path,
            embeddings_dtype=config.output.embeddings_dtype,
            threads=1,
        )
        for unit in plan(corpus, ROWS_PER_UNIT).units:
            block = ReadUnit(corpus)(pa.table({ENVELOPE: [unit.to_json()]}))
            table, envelope = Envelope.open(embed(block))
            assert envelope.failure is None
            values = embeddings_of(table).astype(config.output.dtype)
            width = values.shape[1]
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
            yield pa.table({ID: table.column(ID), EMBEDDING: column})
        torch.set_num_threads(threads)


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
    return {
        entry.name: _modified(filesystem, locations.resolve(entry.url)[1])
        for entry in locations.list_files(folder)
    }


def _modified(filesystem: Any, path: str, tries: int = 20) -> Any:
    """Return when a file was written; the store fails now and then, as it is meant to."""
    for left in reversed(range(tries)):
        try:
            filesystem.invalidate_cache()
            return filesystem.modified(path)
        except (OSError, BotoCoreError):
            if not left:
                raise
    raise AssertionError
