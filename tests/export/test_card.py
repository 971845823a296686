"""The card: what it says of a dataset, and what it says to the Hub."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from pipeline.export import FORMATS
from pipeline.export.card import CardFacts, card
from pipeline.export.exporting import LAYOUTS
from pipeline.names import Names
from pipeline.storage import open_manifest

METRICS = {
    "methods": {
        "identity": {"delta_mu": 0.81, "m_z": 1.25, "retrieval_r1": 0.5, "curve": [1, 2]},
        "anisoalign": {"delta_mu": 0.0123456, "m_z": None, "odd|name": 3.0},
    },
    "gap": {},
    "n": 2000,
    "seed": 0,
}


def front_matter(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("name", FORMATS)
def test_a_card_says_how_the_dataset_was_made(name, dataset):
    manifest = dataclasses.replace(open_manifest(dataset), quarantined={"empty": 3})
    text = card(manifest, LAYOUTS[name](), CardFacts(name="Cats & dogs", license="CC-BY-4.0"))
    for said in (
        "# Cats & dogs",
        "30 captions",
        "8-dimensional float16",
        "of unit norm",
        "| encoder | toy |",
        "| weights of the encoder | laion |",
        "| fingerprint of the encoder | abc |",
        "| aligner | anisoalign |",
        "| fingerprint of the aligner | 0123 |",
        f"{manifest.version} of {manifest.created}",
        "| rows | 30 in 3 shards |",
        "anisoalign 1, torch 2",
        "- empty: 3",
        "## Licence\n\nCC-BY-4.0",
        LAYOUTS[name].title,
        "sha256sum -c checksums.sha256",
    ):
        assert said in text
    said = front_matter(text)
    assert said["license"] == "cc-by-4.0"
    assert said["pretty_name"] == "Cats & dogs"
    assert ("configs" in said) == (name == "hf")


def test_licences_that_the_hub_does_not_know(dataset):
    manifest, layout = open_manifest(dataset), LAYOUTS["hf"]()
    said = front_matter(card(manifest, layout, CardFacts(license='ours: "all" rights')))
    assert (said["license"], said["license_name"]) == ("other", 'ours: "all" rights')
    text = card(manifest, layout, CardFacts())
    assert front_matter(text)["license"] == "unknown"
    assert "None was stated." in text


def test_metrics_are_a_table(dataset):
    text = card(open_manifest(dataset), LAYOUTS["hf"](), CardFacts(metrics=METRICS))
    assert "on 2,000 held-out pairs" in text
    assert "| method | delta_mu | M_Z | R@1 |\n|---|---|---|---|\n" in text
    assert "| identity | 0.81 | 1.25 | 0.5 |\n| anisoalign | 0.01235 | - | - |\n" in text
    assert "## Alignment" not in card(open_manifest(dataset), LAYOUTS["hf"](), CardFacts())


@pytest.mark.parametrize("metrics", [{"methods": []}, {"methods": {"identity": 1}}])
def test_what_is_no_metrics_is_refused(metrics):
    with pytest.raises(ValueError, match="these are no metrics"):
        CardFacts(metrics=metrics)


@pytest.mark.parametrize(
    ("rows", "size"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (5 * 10**6, "1M<n<10M"), (2 * 10**9, "n>1B")],
)
def test_size_categories(dataset, rows, size):
    manifest = dataclasses.replace(open_manifest(dataset), rows=rows)
    said = front_matter(card(manifest, LAYOUTS["hf"](), CardFacts()))
    assert said["size_categories"] == [size]


def test_rows_that_are_not_of_unit_norm(dataset):
    manifest = dataclasses.replace(open_manifest(dataset), aligner={"unit_rows": False})
    assert "not normalised" in card(manifest, LAYOUTS["hf"](), CardFacts())


@pytest.mark.parametrize("name", FORMATS)
def test_a_card_of_other_modalities(name, dataset):
    usual = open_manifest(dataset)
    named = dataclasses.replace(usual, names=Names(source="audio", target="depth"))
    facts = CardFacts(metrics=METRICS)
    layout = LAYOUTS[name]()
    text = card(named, layout, facts).replace(layout.reading, "")
    for said in (
        "# Substitute depth embeddings",
        "30 rows of audio with, for each, an embedding that stands in for one of depth",
        "its audio embedding, moved into the cloud of depth embeddings",
        "Geometry of the moved audio against real depth embeddings on 2,000 held-out pairs",
        "The rights in the audio,",
    ):
        assert said in text
    assert front_matter(text)["pretty_name"] == "Substitute depth embeddings"
    assert "clip" not in front_matter(text)["tags"]
    words = text.replace("the column `text`", "").replace("captions.parquet", "")
    words = words.replace(layout.title, "")
    assert not re.search(r"\b(texts?|images?|captions?|pictures?)\b", words, re.IGNORECASE)
    assert "# Substitute image embeddings" in card(usual, layout, facts)
    assert "the moved text against real image embeddings" in card(usual, layout, facts)
