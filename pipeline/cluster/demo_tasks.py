"""The packaged world as data of the downstream evaluation: embeddings, captions, questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.align.training import seed_of
from pipeline.cluster.demo_pairs import encode_pairs
from pipeline.cluster.encode import encode
from pipeline.cluster.outputs import embeddings_root
from pipeline.config import RunConfig
from pipeline.demo.corpora import WORLD_VERSION
from pipeline.demo.questions import attributes, attributes_of, questions
from pipeline.demo.telling import Telling
from pipeline.demo.world import CAPTION_INDEX, IMAGE_INDEX, PAIR_INDEX, Scene
from pipeline.evaluation.downstream.samples import (
    DownstreamData,
    Examination,
    Material,
    Sample,
    captioned,
)
from pipeline.evaluation.pairs import Clouds
from pipeline.report.console import Reporter
from pipeline.schema import EMBEDDING, ID
from pipeline.storage.manifest import open_manifest
from pipeline.storage.shards import embeddings_of, read_shard


def demo_identity(config: RunConfig) -> dict[str, Any]:
    """Return what the world's embeddings were made of, once they are encoded."""
    sides = {side: open_manifest(embeddings_root(config, side)) for side in ("text", "image")}
    return {
        "world": [WORLD_VERSION, config.seed, *vars(config.demo).values()],
        "encoder": sides["text"].encoder,
        **{side: sorted(one.sha256 for one in found.receipts) for side, found in sides.items()},
    }


def demo_data(config: RunConfig, reporter: Reporter) -> Callable[[int], DownstreamData]:
    """Encode the world through the pipeline's own flows; returns its data by seed.

    A seed chooses captions, images and what is asked about them; all are asked about the same
    held-out images in the same words.
    """
    encode(config, reporter)
    text = _stored(config, "text")
    image = _stored(config, "image")
    settings = config.downstream
    test = encode_pairs(config, reporter).image[: settings.test_images]
    examination = _examination(config, test)
    fitting = Clouds(image=image, text=text)

    def of_seed(seed: int) -> DownstreamData:
        texts = _chosen(len(text), 2 * settings.captions, seed, "text")
        images = _chosen(len(image), settings.captions, seed, "image")
        return DownstreamData(
            fitting=fitting,
            text=_told_material(config.seed, text, texts, seed),
            image=_seen_material(config.seed, image, images, seed),
            test=examination,
        )

    return of_seed


def _stored(config: RunConfig, side: Any) -> Tensor:
    """Return a side's embeddings (n, d), row k of the scene k: ids are in order of scenes."""
    root = embeddings_root(config, side)
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for receipt in open_manifest(root).receipts:
        table = read_shard(root, receipt, [ID, EMBEDDING])
        ids += table.column(ID).to_pylist()
        parts.append(embeddings_of(table))
    rows = np.concatenate(parts)[np.argsort(np.array(ids))]
    numbers = [int(one.rsplit("-", 1)[1]) for one in sorted(ids)]
    assert numbers == list(range(len(numbers))), "a scene of the packaged world was not encoded"
    tensor = torch.from_numpy(rows)
    return tensor / tensor.norm(dim=1, keepdim=True)  # float16 left it near one


def _chosen(rows: int, wanted: int, seed: int, name: str) -> list[int]:
    generator = torch.Generator().manual_seed(seed_of(seed, "downstream", name))
    return torch.randperm(rows, generator=generator)[:wanted].tolist()


def _asked(row: int, telling: Telling, seed: int, index: int) -> list[Sample]:
    generator = np.random.default_rng([seed, index])
    found = questions(telling, generator)
    return [Sample(row, one.task, one.prompt, one.answer) for one in found]


def _told_material(world: int, text: Tensor, rows: Sequence[int], seed: int) -> Material:
    """Return captions and what can be asked of the captions alone."""
    scenes = [Scene(world, CAPTION_INDEX + row) for row in rows]
    captions = captioned([scene.caption() for scene in scenes])
    asked = [
        sample
        for place, scene in enumerate(scenes)
        for sample in _asked(place, scene.telling(), seed, scene.index)
    ]
    return Material(text[list(rows)], captions, [*captions, *asked])


def _seen_material(world: int, image: Tensor, rows: Sequence[int], seed: int) -> Material:
    """Return pictures with captions, and instructions about all that is to be seen."""
    scenes = [Scene(world, IMAGE_INDEX + row) for row in rows]
    described = captioned([scene.description() for scene in scenes])
    asked = [
        sample
        for place, scene in enumerate(scenes)
        for sample in _asked(place, scene.everything(), seed, scene.index)
    ]
    captions = captioned([scene.caption() for scene in scenes])
    return Material(image[list(rows)], captions, [*described, *asked])


def _examination(config: RunConfig, images: Tensor) -> Examination:
    tellings = [Scene(config.seed, PAIR_INDEX + row).everything() for row in range(len(images))]
    asked = [
        sample
        for row, telling in enumerate(tellings)
        for sample in _asked(row, telling, config.seed, PAIR_INDEX + row)
    ]
    return Examination(images, asked, [attributes_of(one) for one in tellings], attributes)
