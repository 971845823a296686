"""The captioned-scenes world and its corpora: seeded, disjoint, incomplete, readable."""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.demo import telling, world
from pipeline.demo.corpora import DemoCorpora, write_demo_corpora
from pipeline.demo.world import IMAGE_SIZE, Scene

STREAMS = (world.CAPTION_INDEX, world.IMAGE_INDEX, world.PAIR_INDEX, world.TRAINING_INDEX)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpora:
    folder = tmp_path_factory.mktemp("corpora")
    return write_demo_corpora(folder, captions=2300, images=1100, pairs=300, seed=4)


def read_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    for index in (0, 5, world.TRAINING_INDEX):
        one, other = Scene(3, index), Scene(3, index)
        assert (one.first, one.second, one.relation) == (other.first, other.second, other.relation)
        np.testing.assert_array_equal(one.image(), other.image())
        assert [one.caption(k) for k in range(5)] == [other.caption(k) for k in range(5)]


def test_a_scene_does_not_depend_on_what_was_asked_before() -> None:
    told_first = Scene(3, 8)
    captions = [told_first.caption(1), told_first.caption(0)]
    picture = told_first.image()
    drawn_first = Scene(3, 8)
    np.testing.assert_array_equal(drawn_first.image(), picture)
    assert [drawn_first.caption(1), drawn_first.caption(0)] == captions


def test_a_picture_is_rgb_of_the_stated_size() -> None:
    picture = Scene(0, 0).image()
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert picture.dtype == np.uint8


def test_streams_of_a_world_do_not_meet() -> None:
    starts = sorted(STREAMS)
    assert all(b - a >= world.STREAM_SCENES for a, b in itertools.pairwise(starts))


def test_pictures_of_other_seeds_and_streams_differ() -> None:
    pictures = {
        Scene(seed, start + row).image().tobytes()
        for seed in range(4)
        for start in STREAMS
        for row in range(50)
    }
    assert len(pictures) == 4 * len(STREAMS) * 50


def test_every_attribute_takes_every_value() -> None:
    scenes = [Scene(1, index) for index in range(400)]
    assert {scene.first.shape for scene in scenes} == set(range(len(telling.SHAPES)))
    assert {scene.second.colour for scene in scenes} == set(range(len(telling.COLOURS)))
    assert {scene.first.size for scene in scenes} == set(range(len(telling.SIZES)))
    assert {scene.relation for scene in scenes} == set(range(len(telling.RELATIONS)))
    assert {scene.background for scene in scenes} == set(range(len(telling.BACKGROUNDS)))
    assert {scene.light for scene in scenes} == set(range(len(telling.LIGHTS)))


def test_a_named_relation_is_true_of_the_picture() -> None:
    """Clutter-free check: the centres that are drawn stand as the relation says."""
    for index in range(200):
        scene = Scene(2, index)
        first, second = scene._centres(scene._generator(1))
        axis = 1 if scene.relation < 2 else 0
        nearer = first[axis] < second[axis]
        assert nearer == (telling.RELATIONS[scene.relation] in ("left of", "above"))


def test_captions_name_only_what_is_there_and_leave_things_out() -> None:
    """A colour word in a caption is a colour of the scene; each attribute is often unnamed."""
    named = {"colour": 0, "size": 0, "background": 0, "light": 0}
    scenes = [Scene(6, index) for index in range(1000)]
    for scene in scenes:
        words = scene.caption().replace(",", "").split()
        colours = {telling.COLOURS[figure.colour] for figure in (scene.first, scene.second)}
        spoken = {word for word in words if word in telling.COLOURS}
        assert spoken <= colours
        named["colour"] += bool(spoken)
        named["size"] += bool({"small", "tiny", "little", "large", "big", "huge"} & set(words))
        named["background"] += bool({"on", "against"} & set(words))
        named["light"] += bool({"lit", "brighter", "light"} & set(words))
    for name, count in named.items():
        assert 100 < count < 990, name


def test_captions_of_one_scene_vary() -> None:
    assert len({Scene(0, 3).caption(variant) for variant in range(20)}) > 5


def test_drawing_is_fast_enough_for_the_demo() -> None:
    Scene(0, 0).image()
    started = time.process_time()
    for index in range(300):
        Scene(0, index).image()
    assert (time.process_time() - started) / 300 < 2e-3  # aim 0.5 ms; slack for a busy machine


def test_caption_lines_are_readable_and_ids_are_ordered(corpora: DemoCorpora) -> None:
    lines = read_lines(corpora.captions)
    ids = [line["id"] for line in lines]
    assert len(lines) == 2300
    assert ids[17] == "caption-0000017"
    assert ids == sorted(set(ids))
    assert all(set(line) == {"id", "text"} and line["text"] for line in lines)
    assert lines[5]["text"] == Scene(4, world.CAPTION_INDEX + 5).caption()


def test_images_are_png_in_row_groups_of_a_thousand(corpora: DemoCorpora) -> None:
    file = pq.ParquetFile(corpora.images)
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [1000, 100]
    table = file.read()
    assert table.column_names == ["id", "image"]
    ids = table["id"].to_pylist()
    assert ids == sorted(set(ids))
    picture = np.asarray(Image.open(io.BytesIO(table["image"][1050].as_py())))
    np.testing.assert_array_equal(picture, Scene(4, world.IMAGE_INDEX + 1050).image())


def test_pairs_match_row_by_row(corpora: DemoCorpora) -> None:
    table = pq.read_table(corpora.pairs_images)
    lines = read_lines(corpora.pairs_captions)
    assert table["id"].to_pylist() == [line["id"] for line in lines]
    assert len(lines) == 300
    scene = Scene(4, world.PAIR_INDEX + 7)
    assert lines[7]["text"] == scene.caption()
    picture = np.asarray(Image.open(io.BytesIO(table["image"][7].as_py())))
    np.testing.assert_array_equal(picture, scene.image())


def test_written_corpora_are_reused_and_other_parameters_redraw(tmp_path: Path) -> None:
    one = write_demo_corpora(tmp_path, captions=20, images=10, pairs=5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reports: list[tuple[int, int]] = []
    assert write_demo_corpora(tmp_path, captions=20, images=10, pairs=5) == one
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    write_demo_corpora(
        tmp_path,
        captions=20,
        images=11,
        pairs=5,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert pq.read_metadata(one.images).num_rows == 11
    assert reports[-1] == (41, 41)


def test_an_unfinished_folder_is_written_again(tmp_path: Path) -> None:
    corpora = write_demo_corpora(tmp_path, captions=20, images=10, pairs=5)
    (tmp_path / "world.json").unlink()
    corpora.captions.write_text("half", encoding="utf-8")
    write_demo_corpora(tmp_path, captions=20, images=10, pairs=5)
    assert len(read_lines(corpora.captions)) == 20


def test_equal_seeds_write_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_demo_corpora(tmp_path / name, captions=20, images=10, pairs=5, seed=9)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("wrong", [{"captions": 0}, {"pairs": -1}, {"seed": -1}])
def test_wrong_parameters_are_named(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_demo_corpora(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()
