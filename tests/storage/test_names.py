"""What sides are called in manifests, on cards and in corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.names import Names
from pipeline.storage import Corpus, commit, locations, open_manifest, plan, verify
from pipeline.storage.manifest import Manifest, content_digest, current_manifest
from tests.storage.samples import text_corpus, write_dataset

AUDIO = Names(source="audio", target="text")


def named(root: str, folder: Path, names: Names = AUDIO, kind: str = "substitutes") -> Manifest:
    """Commit the sample's shards as a dataset of these names."""
    there = current_manifest(root)
    receipts = there.receipts if there else write_dataset(root, folder)[1]
    return commit(
        root,
        kind=kind,
        dimension=8,
        dtype="float16",
        receipts=receipts,
        source={},
        config={},
        encoder={"model": "toy", "fingerprint": "abc"},
        names=names,
    )


def card(root: str) -> str:
    return locations.read_bytes(locations.join(root, "README.md")).decode()


def test_a_manifest_names_its_sides(tmp_path: Path):
    root = str(tmp_path / "out")
    manifest = named(root, tmp_path / "in")
    assert open_manifest(root) == manifest
    assert manifest.names == AUDIO
    stored = json.loads((tmp_path / "out" / "versions" / f"{manifest.version}.json").read_text())
    assert stored["names"] == {"source": "audio", "target": "text"}
    assert verify(root).problems == ()


def test_other_names_are_another_version(tmp_path: Path):
    root = str(tmp_path / "out")
    first, second = named(root, tmp_path / "in", Names()), named(root, tmp_path / "in")
    assert first.version != second.version
    assert second.changes["added"] == second.changes["removed"] == []
    assert named(root, tmp_path / "in") == second
    # The digest of text and image is that of manifests without names.
    value = json.loads(first.to_json())
    del value["names"]
    assert content_digest(Manifest.from_json(json.dumps(value))) == content_digest(first)
    assert first.version.endswith(content_digest(first)[:8])


@pytest.mark.parametrize(
    "names", [3, {}, {"source": "audio"}, {"source": "A", "target": "b"}, {"source": "a", "b": "c"}]
)
def test_names_that_a_manifest_cannot_have(tmp_path: Path, names: object):
    root = str(tmp_path / "out")
    manifest = named(root, tmp_path / "in")
    where = tmp_path / "out" / "versions" / f"{manifest.version}.json"
    where.write_text(json.dumps({**json.loads(where.read_text()), "names": names}))
    with pytest.raises(ValueError, match=r"is damaged: .*names"):
        open_manifest(root, manifest.version)


def test_cards(tmp_path: Path):
    root = str(tmp_path / "out")
    named(root, tmp_path / "in")
    said = "those of audio, moved into the cloud of text embeddings"
    assert f"# substitutes\n\nSubstitute text embeddings: {said}.\n" in card(root)
    named(root, tmp_path / "in", Names())
    assert "Substitute image embeddings: those of text, moved into the cloud of" in card(root)
    named(root, tmp_path / "in", kind="text-embeddings")
    assert "# audio-embeddings\n\nVersion" in card(root)
    assert "Substitute" not in card(root)
    named(root, tmp_path / "in", kind="image-embeddings")
    assert "# text-embeddings\n\nVersion" in card(root)


def test_a_corpus_says_what_it_is_called():
    usual = Corpus(path="/a.npy", modality="text")
    assert (usual.name, usual.identity["modality"]) == ("text", "text")
    audio = Corpus(path="/a.npy", modality="text", called="audio")
    assert (audio.name, audio.identity["modality"]) == ("audio", "audio")
    assert usual.identity.keys() == audio.identity.keys()
    assert "called" not in usual.identity


def test_embeddings_are_planned_by_what_they_are_called(tmp_path: Path):
    """Texts that were a source can be a target; which side of what run they were is no matter."""
    texts, heard = str(tmp_path / "texts"), str(tmp_path / "heard")
    write_dataset(texts, tmp_path / "in")
    named(heard, tmp_path / "in", kind="text-embeddings")
    target = Corpus(path=texts, modality="image", called="text")
    assert plan(target, 10).rows == plan(text_corpus(texts), 10).rows == 27
    assert plan(text_corpus(heard, called="audio"), 10).rows == 27
    with pytest.raises(ValueError, match="holds audio-embeddings, not text-embeddings"):
        plan(text_corpus(heard), 10)
    with pytest.raises(ValueError, match="holds text-embeddings, not audio-embeddings"):
        plan(text_corpus(texts, called="audio"), 10)
