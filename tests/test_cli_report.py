"""What evaluations write: the report of one, several splits, and several side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import DEFAULT_METHODS
from pipeline.evaluation.pairs import split_rows
from tests.browser import browser
from tests.cluster.samples import error_line, invoke, unit_cloud
from tests.evaluation.samples import bad_pairs, evaluate, write_pairs

REPORT_PAIRS, REPORT_WIDTH = 120, 24
SETTINGS = [
    f"align.{key}={value}"
    for key, value in {
        "rank": 8,
        "prior.steps": 8,
        "prior.width": 16,
        "refiner.steps": 6,
        "refiner.width": 16,
    }.items()
]
SET = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module")
def report_pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an .npz of pairs wide enough for a frontier of two ranks."""
    shared = unit_cloud(REPORT_PAIRS, REPORT_WIDTH, 0.0, 1)
    image = shared + unit_cloud(REPORT_PAIRS, REPORT_WIDTH, 0.6, 2)
    text = shared + unit_cloud(REPORT_PAIRS, REPORT_WIDTH, -0.4, 3)
    path = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    return write_pairs(path, image=image, text=text)


@pytest.fixture(scope="module")
def report(report_pairs: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a folder with everything that --out writes, and what was printed."""
    out = tmp_path_factory.mktemp("report") / "first"
    result = invoke(
        *["evaluate", "geometry", report_pairs, "--out", str(out), "--image-counts", "30,60", *SET]
    )
    assert result.exit_code == 0, result.output
    return out, result.stdout


def read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def test_the_last_line_names_the_page(report: tuple[Path, str]):
    folder, printed = report
    assert printed.splitlines()[-1] == f"report: {folder / 'index.html'}"
    written = {path.name for path in folder.iterdir()}
    assert written == {"index.html", "figures", "metrics.json", "curves.json", "split.json"}
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert {"tradeoff", "tradeoff-close", "phases", "training", "target-size"} <= figures


def test_the_curves_hold_frontier_and_fewer_images(report: tuple[Path, str]):
    curves = read(report[0], "curves.json")
    transports = ("bures-block", "bures-subspace", "bures-gromov")
    assert list(curves["frontier"]) == [*transports, "oracle"]
    for method in transports:
        places = [(point["rank"], point["displacement"]) for point in curves["frontier"][method]]
        # All the way, nothing ties Gromov's rotation to the text.
        ladder = (0.1, 0.2, 0.3, 0.5, 0.75, *(() if method == "bures-gromov" else (1.0,)))
        assert places == [(rank, step) for rank in (8, 16) for step in ladder]
    assert {point["images"] for point in curves["target_size"]} == {30, 60}
    assert len(curves["target_size"]) == 10
    trained = {"anisoalign-radial", "anisoalign"}
    assert set(curves["training"]) == trained
    assert [len(curves["training"][name]["prior"]) for name in trained] == [8, 8]


def test_the_report_opens_in_a_browser_with_the_exact_numbers(report: tuple[Path, str]):
    folder, _ = report
    metrics = read(folder, "metrics.json")
    with browser() as opened:
        opened.get((folder / "index.html").as_uri())
        assert opened.get_log("browser") == []
        cells = opened.execute_script(
            "return [...document.querySelectorAll('td[data-metric]')].map(cell =>"
            "[cell.dataset.method, cell.dataset.metric, Number(cell.dataset.value),"
            " cell.innerText])"
        )
        boxes = opened.execute_script(
            "return [...document.querySelectorAll('figure svg')].map(svg => {"
            "const box = svg.getBoundingClientRect(); return [box.width, box.height]})"
        )
        facts = opened.execute_script("return document.querySelector('#facts').innerText")
        note = opened.execute_script("return document.querySelector('.note').innerText")
        assert opened.get_log("browser") == []
    found: dict[str, dict[str, float]] = {}
    for method, metric, value, text in cells:
        found.setdefault(method, {})[metric] = value
        digits = 3 if abs(value) < 10 else 1
        assert text.split()[0] == f"{value:.{digits}f}", (method, metric)
    assert found == metrics["methods"]
    assert tuple(found) == DEFAULT_METHODS
    assert len(boxes) == len(list((folder / "figures").glob("*.svg")))
    for width, height in boxes:
        assert width > 100
        assert height > 100
    intervals = (
        "95 % intervals, bootstrap over the held-out pairs with neighbourhoods held fixed "
        "(200 resamples)."
    )
    assert facts == (
        "60 held-out pairs, one split, fitted on 60 images and 60 unpaired texts, seed 0. "
        + intervals
    )
    assert note.endswith(f"Small print: {intervals}")


def test_without_a_frontier(report_pairs: str, tmp_path: Path):
    evaluate(report_pairs, "--methods", "centroid,realign", "--out", str(tmp_path), "--no-frontier")
    assert not {"frontier", "target_size", "phases"} & set(read(tmp_path, "curves.json"))
    assert "closed-form" not in (tmp_path / "index.html").read_text()


def test_several_splits_are_averaged(report_pairs: str, tmp_path: Path):
    arguments = ["--methods", "realign,bures-gromov", *SET]
    out = ["--out", str(tmp_path), "--no-frontier"]
    found = evaluate(report_pairs, *arguments, *out, "--splits", "2", "--seed", "4")
    alone = [evaluate(report_pairs, *arguments, "--seed", seed) for seed in ("4", "5")]
    for method, values in found["methods"].items():
        for metric, value in values.items():
            each = [one["methods"][method][metric] for one in alone]
            assert value == pytest.approx(np.mean(each))
            low, high = found["intervals"][method][metric]
            assert low <= min(each) <= max(each) <= high
    assert (found["splits"], found["seed"], found["n"]) == (2, 4, 60)
    assert found["interval_kind"] == "splits"
    page = (tmp_path / "index.html").read_text()
    assert "95 % intervals, Student&#39;s t over 2 splits that share pairs." in page
    assert page.count("Curves are of the first split, seed 4.") == 5  # 4 captions and the facts
    splits = read(tmp_path, "split.json")["splits"]
    assert [one["seed"] for one in splits] == [4, 5]
    for one in splits:
        assert one["held_out"] == split_rows(REPORT_PAIRS, 0.5, one["seed"]).held_out.tolist()


def test_fitting_on_clouds_of_their_own(report_pairs: str, tmp_path: Path):
    image, text = unit_cloud(90, REPORT_WIDTH, 0.6, 7), unit_cloud(70, REPORT_WIDTH, -0.4, 8)
    fitting = write_pairs(tmp_path / "fitting.npz", image=image, text=text)
    out = tmp_path / "out"
    arguments = ["--methods", "centroid,c3", "--fitting", fitting]
    found = evaluate(report_pairs, *arguments, "--out", str(out), "--no-frontier")
    assert found["n"] == REPORT_PAIRS
    assert found["fitting"] == {"images": 90, "texts": 70, "separate": True}
    assert not (out / "split.json").exists()
    with np.load(report_pairs) as arrays:
        x, y = (
            arrays[name] / np.linalg.norm(arrays[name], axis=1, keepdims=True)
            for name in ("image", "text")
        )
    moved = y - text.mean(axis=0) + image.mean(axis=0)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    expected = np.linalg.norm(moved.mean(axis=0) - x.mean(axis=0))
    assert found["methods"]["centroid"]["delta_mu"] == pytest.approx(float(expected), abs=1e-5)
    # The seed varies what is drawn in a fit; intervals stay those over the pairs.
    several = evaluate(report_pairs, *arguments, "--splits", "2", "--out", str(out))
    assert (found["interval_kind"], several["interval_kind"]) == ("pairs", "pairs")
    before, after = (one["intervals"]["centroid"]["phi"] for one in (found, several))
    assert after[1] - after[0] == pytest.approx(before[1] - before[0], rel=0.3)
    assert several["methods"]["c3"]["phi"] != found["methods"]["c3"]["phi"]
    page = (out / "index.html").read_text()
    assert "held fixed (200 resamples, ends averaged over 2 fits)." in page
    assert "are of the first fit, seed 0." in page


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no file", "bad.npz: No such file"),
        ("nan", "text has 1 rows that are zero or not finite"),
        ("widths", "both need equal widths"),
        ("few", "have width 8, the pairs 24"),
    ],
)
def test_clouds_that_cannot_be_used(report_pairs: str, tmp_path: Path, kind: str, said: str):
    fitting = str(bad_pairs(kind, tmp_path))
    result = invoke("evaluate", "geometry", report_pairs, "-q", "--fitting", fitting)
    assert result.exit_code == 1
    assert said in error_line(result)


def test_more_images_than_there_are(report_pairs: str, tmp_path: Path):
    out = ["--out", str(tmp_path / "out"), "--image-counts", "30,61"]
    result = invoke("evaluate", "geometry", report_pairs, "-q", *out)
    assert result.exit_code == 1
    assert "--image-counts has 61, but there are 60 images" in error_line(result)
    assert not list((tmp_path / "out").iterdir())


def test_figures_of_a_report_before_are_removed(report_pairs: str, tmp_path: Path):
    figures = tmp_path / "figures"
    arguments = ["--methods", "realign,bures-gromov", "--no-frontier", *SET]
    evaluate(report_pairs, *arguments, "--out", str(tmp_path), "--image-counts", "30")
    assert (figures / "target-size.svg").exists()
    (figures / "my-own.png").write_bytes(b"mine")
    (figures / "target-size.txt").write_text("mine")
    evaluate(report_pairs, *arguments, "--out", str(tmp_path))
    left = {path.name for path in figures.iterdir()}
    assert not {"target-size.svg", "target-size.png"} & left
    assert {"my-own.png", "target-size.txt", "tradeoff.png"} <= left


# -- evaluate compare ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(report_pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a second evaluated folder with the first one's name."""
    folder = tmp_path_factory.mktemp("report") / "first"
    methods = ["--methods", "identity,realign", "--seed", "1", "--no-frontier"]
    evaluate(report_pairs, *methods, "--out", str(folder))
    return folder


def test_runs_side_by_side(report: tuple[Path, str], other: Path, tmp_path: Path):
    folders = [report[0], other]
    labels = [f"{folder.parent.name}/first" for folder in folders]  # of the same name otherwise
    out = tmp_path / "out"
    result = invoke("evaluate", "compare", *map(str, folders), "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    *table, said, last = result.stdout.splitlines()
    assert said == f"report: {out / 'index.html'}"
    expected = {
        label: read(folder, "metrics.json") for label, folder in zip(labels, folders, strict=True)
    }
    assert json.loads(last) == {"report": str(out / "index.html"), "runs": expected}
    for label in labels:
        realign = f"{expected[label]['methods']['realign']['m_z']:.3f}"
        assert any("ReAlign" in row and label in row and realign in row for row in table)
    with browser() as opened:
        opened.get((out / "index.html").as_uri())
        assert opened.get_log("browser") == []
        cells = opened.execute_script(
            "return [...document.querySelectorAll('td[data-metric]')].map(cell => [cell.dataset.run"
            ", cell.dataset.method, cell.dataset.metric, cell.dataset.value])"
        )
    shown = {(run, method, metric): value for run, method, metric, value in cells}
    for label, metrics in expected.items():
        for method in DEFAULT_METHODS:
            for metric in ("m_z", "omega", "retrieval_r1"):
                value = metrics["methods"].get(method, {}).get(metric)
                assert shown[label, method, metric] == ("" if value is None else repr(value))


@pytest.mark.parametrize(
    ("folders", "code", "said"),
    [
        ([], 2, "Missing argument 'DIR...'"),
        (["first"], 2, "a comparison needs two folders or more"),
        (["first", "./first"], 2, "a folder is named twice"),
        (["first", "lost"], 1, "error: there is no folder lost"),
        (["first", "out"], 2, "--out out is one of the folders to compare"),
        (["first", "empty"], 1, "there is no empty/metrics.json; write one with `anisoalign"),
    ],
)
def test_comparisons_that_cannot_be(
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folders: list[str],
    code: int,
    said: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").symlink_to(other)
    (tmp_path / "empty").mkdir()
    result = invoke("evaluate", "compare", *folders, "--out", "out", "-q")
    assert result.exit_code == code
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


AUDIO = ["--set", "names.source=audio", "--set", "names.target=text"]


def test_other_modalities(report_pairs: str, tmp_path: Path):
    """Arrays and labels go by the names; the figures are those of any other pair."""
    with np.load(report_pairs) as arrays:
        heard = write_pairs(tmp_path / "heard.npz", audio=arrays["text"], text=arrays["image"])
    methods = ["--methods", "identity,centroid,bures-gromov"]
    out = tmp_path / "heard"
    arguments = ["evaluate", "geometry", heard, *methods, *AUDIO, *SET, "--image-counts", "30"]
    result = invoke(*arguments, "--out", str(out), "--no-frontier")
    assert result.exit_code == 0, result.output
    assert "Audio (identity)" in result.stdout
    found = read(out, "metrics.json")
    assert found["names"] == {"source": "audio", "target": "text"}
    page = (out / "index.html").read_text()
    assert re.search(r'class="verdict">[^<]* with the texts', page)
    assert "fitted on 60 texts and 60 unpaired audio embeddings" in page
    assert "How many texts does a fit need?" in page
    assert not re.search(r"\bimages?\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))

    usual = tmp_path / "usual"
    plain = evaluate(report_pairs, *methods, *SET, "--out", str(usual), "--no-frontier")
    assert plain["methods"] == found["methods"]
    assert plain["names"] == {"source": "text", "target": "image"}
    both = invoke("evaluate", "compare", str(out), str(usual), "--out", str(tmp_path / "both"))
    assert both.exit_code == 0, both.output
    assert "Source (identity)" in both.stdout
    assert "Entering the target embeddings" in (tmp_path / "both" / "index.html").read_text()
    (out / "metrics.json").write_text(json.dumps({**found, "names": {"source": "audio"}}))
    wrong = invoke("evaluate", "compare", str(out), str(usual), "-q", "--out", str(tmp_path / "no"))
    assert "metrics.json: names are not an object of source and target" in error_line(wrong)


@pytest.mark.parametrize(
    ("arrays", "arguments", "said"),
    [
        (("audio", "text"), [], "has no array named image; it has audio, text"),
        (("image", "text"), AUDIO, "has no array named audio; it has image, text"),
        (("audio", "text"), ["--split", "0.01"], "has no array named image"),
        (("audio", "text"), [*AUDIO, "--image-counts", "99"], "but there are 60 texts to fit on"),
        (("short", "text"), ["--set", "names.source=short"], "no array named image"),
    ],
)
def test_arrays_of_other_names(
    report_pairs: str, tmp_path: Path, arrays: tuple[str, str], arguments: list[str], said: str
):
    with np.load(report_pairs) as found:
        given = dict(zip(arrays, (found["text"], found["image"]), strict=True))
    path = write_pairs(tmp_path / "pairs.npz", **given)
    out = ["--out", str(tmp_path / "out")] if "--image-counts" in arguments else []
    result = invoke("evaluate", "geometry", path, "-q", *arguments, *out)
    assert result.exit_code == 1
    assert said in error_line(result)


def test_shapes_are_told_by_the_names(tmp_path: Path):
    shapes = {"audio": np.ones((60, 8)), "text": np.ones((50, 8))}
    path = write_pairs(tmp_path / "pairs.npz", **shapes)
    result = invoke("evaluate", "geometry", path, "-q", *AUDIO)
    assert "text has shape (50, 8), audio (60, 8); pairs need equal" in error_line(result)
    same = invoke("evaluate", "geometry", path, "-q", "--set", "names.target=text")
    assert same.exit_code == 2
    assert "names.source and names.target are both text" in error_line(same)
