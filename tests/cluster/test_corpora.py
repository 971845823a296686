"""Which stored embeddings a configuration may use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.cluster.corpora import embedding_corpus, encoder_options
from pipeline.cluster.outputs import embeddings_root
from pipeline.config import parse_config
from pipeline.report.console import Reporter
from pipeline.storage import commit
from tests.storage.samples import write_dataset


def test_embeddings_whose_ids_were_not_checked_are_stale_once_they_have_to_be(tmp_path: Path):
    output = {"path": str(tmp_path / "out")}
    checking = parse_config({"output": output})
    unchecking = parse_config({"output": output, "rejects": {"check_ids": False}})
    root = embeddings_root(checking, "text")
    _, receipts = write_dataset(root, tmp_path / "in")

    def written_by(config):
        commit(
            root,
            kind="text-embeddings",
            dimension=8,
            dtype="float16",
            receipts=receipts,
            source={},
            config=config.to_mapping(),
            encoder=dataclasses.asdict(encoder_options(config)),
        )

    reporter = Reporter(quiet=True)
    written_by(unchecking)
    assert embedding_corpus(unchecking, "text", reporter).path == root
    with pytest.raises(ValueError, match=r"another rejects\.check_ids \(False, now True\)"):
        embedding_corpus(checking, "text", reporter)
    written_by(checking)
    assert embedding_corpus(checking, "text", reporter).path == root
    assert embedding_corpus(unchecking, "text", reporter).path == root
