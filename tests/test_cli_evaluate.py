"""The command that measures methods: evaluate geometry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.evaluation import DEFAULT_METHODS
from tests.cluster.samples import SMALL_ALIGN, error_line, invoke, unit_cloud, write_config
from tests.evaluation.samples import bad_pairs, evaluate, write_pairs

PAIRS, PAIR_WIDTH, SEED = 240, 16, 5


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """Return an .npz of pairs that share a direction, with a gap between the modalities."""
    shared = unit_cloud(PAIRS, PAIR_WIDTH, 0.0, 1)
    image = shared + unit_cloud(PAIRS, PAIR_WIDTH, 0.6, 2)
    text = 2.0 * (shared + unit_cloud(PAIRS, PAIR_WIDTH, -0.4, 3))  # rows need not be unit
    return write_pairs(tmp_path / "pairs.npz", image=image, text=text)


def test_metrics_of_every_method(tmp_path: Path, pairs: str):
    config = write_config(tmp_path / "c.yaml", {"align": SMALL_ALIGN})
    out = tmp_path / "deep/out"
    metrics = evaluate(
        pairs, "--config", config, "--out", str(out), "--split", "0.6", "--no-frontier"
    )
    assert metrics == json.loads((out / "metrics.json").read_text())
    split = json.loads((out / "split.json").read_text())
    assert sorted(split["image"]) == sorted(split["text"])
    assert sorted(split["image"] + split["held_out"]) == list(range(PAIRS))
    assert (metrics["n"], metrics["seed"], metrics["splits"]) == (96, 0, 1)
    assert metrics["fitting"] == {"images": 144, "texts": 144, "separate": False}
    assert tuple(metrics["methods"]) == DEFAULT_METHODS
    names = {"delta_mu", "m_z", "m_x", "a_r", "phi", "psi", "omega", "paired_cosine"}
    names |= {"retrieval_r1", "retrieval_r5", "retrieval_r10"}
    for values in metrics["methods"].values():
        assert set(values) == names
        assert all(np.isfinite(value) for value in values.values())
    identity, realign = metrics["methods"]["identity"], metrics["methods"]["realign"]
    assert identity["phi"] == pytest.approx(1)
    assert identity["omega"] == 1
    assert realign["delta_mu"] < 0.5 * identity["delta_mu"]
    assert metrics["gap"]["g_mu"] == pytest.approx(identity["delta_mu"], rel=1e-4)


def test_realign_as_numpy_has_it(pairs: str):
    """An independent computation in float64 from the method's three steps."""
    arguments = ["--methods", "realign", "--seed", str(SEED)]
    found = evaluate(pairs, *arguments)["methods"]["realign"]
    with np.load(pairs) as arrays:
        image, text = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (arrays[name].astype(np.float64) for name in ("image", "text"))
        )
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(SEED)).numpy()
    fitted, held = order[: PAIRS // 2], order[PAIRS // 2 :]
    image_mean, text_mean = image[fitted].mean(axis=0), text[fitted].mean(axis=0)
    scale = np.sqrt(image[fitted].var(axis=0).sum() / text[fitted].var(axis=0).sum())

    def normalised(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def mapped(rows: np.ndarray) -> np.ndarray:
        return normalised(image_mean + scale * (rows - text_mean))

    shift = image_mean - mapped(text[fitted]).mean(axis=0)
    substitute, x, y = normalised(mapped(text[held]) + shift), image[held], text[held]
    residual = x - substitute
    eigenvalues = np.linalg.eigvalsh(residual.T @ residual)
    similarity = substitute @ x.T
    expected = {
        "delta_mu": np.linalg.norm(substitute.mean(axis=0) - x.mean(axis=0)),
        "phi": (y * substitute).sum(axis=1).mean(),
        "paired_cosine": (x * substitute).sum(axis=1).mean(),
        "a_r": eigenvalues[-1] / eigenvalues.mean(),
        "retrieval_r1": (similarity.argmax(axis=1) == np.arange(len(held))).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name


def test_a_fit_sees_no_pairs(tmp_path: Path, pairs: str):
    """Permuting the texts of the fitting half changes nothing but the order of sums."""
    arguments = ["--methods", "centroid,realign,anisoalign-init", "--set", "align.rank=4"]
    before = evaluate(pairs, *arguments, "--seed", str(SEED))
    with np.load(pairs) as arrays:
        image, text = arrays["image"], arrays["text"].copy()
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(SEED)).numpy()
    fitted = order[: PAIRS // 2]
    text[fitted] = text[np.random.default_rng(0).permutation(fitted)]
    shuffled = write_pairs(tmp_path / "shuffled.npz", image=image, text=text)
    after = evaluate(shuffled, *arguments, "--seed", str(SEED))
    assert after["gap"] == before["gap"]
    for method, values in before["methods"].items():
        assert after["methods"][method] == pytest.approx(values, abs=1e-5), method


def test_the_same_seed_gives_the_same_metrics(pairs: str):
    first, again, other = (
        evaluate(pairs, "--methods", "realign", "--seed", seed) for seed in ("1", "1", "2")
    )
    assert first == again
    assert first["methods"] != other["methods"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no file", "No such file"),
        ("text file", "bad.npz is not an .npz archive of arrays of floats"),
        ("cut", "bad.npz is not an .npz archive of arrays of floats"),
        ("one array", "bad.npy is not an .npz archive of arrays"),
        ("missing array", "has no array named text; it has image, caption"),
        ("pickled", "bad.npz is not an .npz archive of arrays of floats"),
        ("integers", "text must be a two-dimensional array of floats, not int64"),
        ("widths", "image has shape (60, 8), text (60, 6)"),
        ("lengths", "image has shape (60, 8), text (50, 8)"),
        ("nan", "text has 1 rows that are zero or not finite, the first at 7"),
        ("zero", "image has 1 rows that are zero or not finite, the first at 3"),
        ("few", "leaves 15 to fit on and 15 to measure"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path: Path, kind: str, said: str):
    path = bad_pairs(kind, tmp_path)
    result = invoke("evaluate", "geometry", str(path), "-q", "--methods", "realign")
    assert result.exit_code == 1
    message = error_line(result)
    assert said in message
    assert "use -v for the traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--split", "1.5"], 1, "--split 1.5 of 240 pairs"),
        (["--set", "align.rank=5"], 2, "align.rank must be auto or an even number"),
        (["--methods", "anisoalign-init", "--set", "align.rank=18"], 1, "align.rank is 18"),
    ],
)
def test_evaluations_that_cannot_be(pairs: str, arguments: list[str], code: int, said: str):
    result = invoke("evaluate", "geometry", pairs, "-q", *arguments)
    assert result.exit_code == code
    assert said in error_line(result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--methods", "realign,procrustes"],
            "unknown method 'procrustes'; known are identity",
        ),
        (["--methods", ","], "names no method"),
        (["--splits", "0"], "0 is not in the range x>=1"),
        (["--image-counts", "100,many", "--out", "o"], "'100,many' is no list of whole numbers"),
        (["--image-counts", "100"], "give --out"),
        (["--frontier"], "give --out"),
        (["--fitting", "f.npz", "--split", "0.4"], "--split says nothing with --fitting"),
        (["--set", "image.path=i"], "image.path says nothing here; only keys of the align section"),
        (["--set", "align.method=c3"], "align.method says nothing here; name methods with"),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_read(arguments: list[str], said: str):
    result = invoke("evaluate", "geometry", "lost.npz", "-q", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "lost.npz" not in result.stderr


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    out = str(tmp_path / "file" / "out")
    result = invoke("evaluate", "geometry", "lost.npz", "-q", "--out", out)
    assert result.exit_code == 1
    assert "cannot write" in error_line(result)
    assert "lost.npz" not in result.stderr


def test_other_sections_of_a_configuration_are_allowed(tmp_path: Path, pairs: str):
    """The methods are those of --methods, whichever the run of that file fits."""
    align = {**SMALL_ALIGN, "method": "bures-block"}
    config = write_config(tmp_path / "c.yaml", {"align": align, "seed": 9})
    found = evaluate(pairs, "--config", config, "--methods", "realign")
    assert list(found["methods"]) == ["realign"]
    assert found["seed"] == 0


def test_the_table_of_methods(pairs: str):
    result = invoke("evaluate", "geometry", pairs, "--methods", "identity,realign")
    assert result.exit_code == 0
    assert "Methods on 120 held-out pairs" in result.stdout
    assert "ReAlign" in result.stdout
    assert "Text (identity)" in result.stdout
