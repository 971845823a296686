"""Which stored embeddings a configuration may use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.corpora import embedding_corpus, encoder_options
from pipeline.cluster.duplicates import may_share_rows
from pipeline.cluster.fit import encoder_of
from pipeline.cluster.outputs import embeddings_root
from pipeline.cluster.sources import source_corpus
from pipeline.config import parse_config
from pipeline.report.console import Reporter
from pipeline.storage import Corpus, commit, plan
from pipeline.storage.corpus import Part
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


def _mixture(*paths: Path) -> Corpus:
    parts = [Part(name=path.name, corpus=Corpus(path=str(path), modality="text")) for path in paths]
    return Corpus(path="", modality="text", parts=tuple(parts), passed_through=("source",))


def test_data_sets_of_two_encoders_are_not_mixed(tmp_path: Path):
    for name in "abc":
        write_dataset(str(tmp_path / name), tmp_path / f"in-{name}")
    alike = _mixture(tmp_path / "a", tmp_path / "b")
    assert encoder_of(alike)["fingerprint"] == "abc"
    _, receipts = write_dataset(str(tmp_path / "c"), tmp_path / "in-c")
    commit(
        str(tmp_path / "c"),
        kind="text-embeddings",
        dimension=8,
        dtype="float16",
        receipts=receipts,
        source={},
        config={},
        encoder={"model": "another", "fingerprint": "def"},
    )
    with pytest.raises(ValueError, match="the mixture of a, c holds embeddings of several enc"):
        encoder_of(_mixture(tmp_path / "a", tmp_path / "c"))


def test_mixed_data_sets_may_share_ids(tmp_path: Path):
    for name in "ab":
        write_dataset(str(tmp_path / name), tmp_path / f"in-{name}")
    alone = Corpus(path=str(tmp_path / "a"), modality="text")
    assert not may_share_rows(alone, plan(alone, 10))
    mixed = _mixture(tmp_path / "a", tmp_path / "b")
    assert may_share_rows(mixed, plan(mixed, 10))


@pytest.mark.parametrize(
    "options", [{"text": {"unicode": "NFC"}}, {"rejects": {"duplicate_texts": "reject"}}]
)
def test_embeddings_made_by_other_rules_are_stale(tmp_path: Path, options: dict[str, Any]):
    (tmp_path / "a.txt").write_text("x\n")
    text = {"path": str(tmp_path / "a.txt")}
    plain = parse_config({"output": {"path": str(tmp_path / "out")}, "text": text})
    values = plain.to_mapping()
    for section, changed in options.items():
        values[section] |= changed
    other = parse_config(values)
    reporter, root = Reporter(quiet=True), embeddings_root(plain, "text")
    _, receipts = write_dataset(root, tmp_path / "in")
    for made_by, now in ((plain, other), (other, plain)):
        source = source_corpus(made_by, "text", reporter).identity
        commit(
            root,
            kind="text-embeddings",
            dimension=8,
            dtype="float16",
            receipts=receipts,
            source={**source, "digest": "of the plan"},
            config=made_by.to_mapping(),
            encoder=dataclasses.asdict(encoder_options(made_by)),
        )
        assert embedding_corpus(made_by, "text", reporter).path == root
        with pytest.raises(ValueError, match="made from another text"):
            embedding_corpus(now, "text", reporter)
