"""The benchmarks of what computes end in figures, and compare equal work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.align.anisoalign import AnisoAlign
from pipeline.align.settings import PriorSettings, RefinerSettings
from pipeline.benchmarks.clouds import random_cloud
from pipeline.benchmarks.encode_text import read_captions
from pipeline.benchmarks.rates import in_turns, rate
from pipeline.benchmarks.transform import Products
from pipeline.geometry.moments import Moments
from tests.cluster.samples import invoke

FEW: dict[str, Any] = {"steps": 1, "batch_size": 8}


def figures(*arguments: str) -> dict[str, Any]:
    result = invoke("bench", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert {"name", "value", "unit", "baseline", "ratio", "spread", "machine"} < found.keys()
    for part in (found, *found.get("parts", {}).values()):
        assert part["ratio"] == pytest.approx(part["value"] / part["baseline"])
        assert part["spread"][0] <= part["value"] <= part["spread"][1]
    assert found["name"] == arguments[0]
    return found


def test_encode_text(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a dog and {one} cats\n" for one in range(40)))
    found = figures("encode-text", str(captions), "--model", "demo", "--rows", "16")
    assert found["captions"] == 14
    assert found["error"] < 1e-5


def test_encode_image() -> None:
    found = figures("encode-image", "--model", "demo", "--rows", "70")
    assert found["error"] < 1e-5


def test_statistics() -> None:
    found = figures("statistics", "--rows", "200")
    assert set(found["parts"]) == {
        *(f"moments, d={width}" for width in (512, 1280)),
        *(f"polar, d={width}" for width in (512, 1280)),
    }
    for name, part in found["parts"].items():
        if name.startswith("moments"):
            assert part["error"] < 1e-12


def test_transform() -> None:
    found = figures("transform", "--rows", "300", "--dimension", "32")
    assert set(found["parts"]) == {"anisoalign", "realign"}


def test_products_are_those_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = random_cloud(64, 16, 0), random_cloud(64, 16, 1)
    aligner = AnisoAlign(rank=4, prior=PriorSettings(**FEW), refiner=RefinerSettings(**FEW))
    aligner.fit(image, text)
    bare, real = Counted(), Counted()
    with bare:
        Products(aligner, 64)()
    with real:
        aligner.map(text)
    assert bare.products == real.products
    assert bare.products > 0


class Counted(torch.overrides.TorchFunctionMode):
    """Counts the multiplications of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = getattr(function, "__name__", "")
        if name in {"mm", "addmm", "addmm_", "matmul", "__matmul__", "__rmatmul__", "linear"}:
            operands = [one for one in args if isinstance(one, torch.Tensor) and one.ndim == 2]
            if name == "linear":
                left, right = args[0], args[1].T
            else:
                left, right = operands[-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


def test_clouds_are_unit_rows_of_one_cloud() -> None:
    whole = [random_cloud(2000, 8, 3, draw=one) for one in range(2)]
    for cloud in whole:
        torch.testing.assert_close(cloud.norm(dim=1), torch.ones(2000))
    assert not torch.equal(*whole)
    means = [Moments.of(cloud).mean for cloud in whole]
    torch.testing.assert_close(*means, atol=0.05, rtol=0)
    assert means[0].norm() > 0.5


def test_captions_come_from_all_over_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"caption {one}\n" for one in range(100)))
    found = read_captions(str(path), 10, tmp_path)
    assert found == [f"caption {one}" for one in range(0, 100, 10)]
    assert len(read_captions(None, 20, tmp_path / "drawn")) == 20


def test_rates_come_in_turns() -> None:
    order: list[str] = []
    rates = in_turns((10, lambda: order.append("ours")), (20, lambda: order.append("baseline")), 3)
    assert order == ["ours", "baseline"] * 4
    assert len(rates.ours) == len(rates.baseline) == 3
    assert rate(5, lambda: None) > 5
