"""Encoders by import path: what a class outside the package may return, and what is said if not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.encoders.class_encoder import ClassEncoder, WrongEmbeddingsError

MODULE = """
import numpy as np
from pipeline.encoders import Encoder

class Plain:
    def __init__(self, returned=None, said=None, device=None):
        self.returned, self.device, self.calls = returned, device, 0
        self.said = said or {}

    def describe(self):
        said = {"model": "mine", "fingerprint": "abc", "dimension": 3, "context_length": None}
        return {**said, **self.said}

    def encode_texts(self, texts):
        self.calls += 1
        return self.returned(len(texts)) if callable(self.returned) else self.returned

    encode_images = encode_texts

class Lacking:
    def describe(self):
        return {}

class Refusing(Plain):
    def __init__(self, token):
        raise RuntimeError("no weights\\nhere")

class Silent(Plain):
    def describe(self):
        raise KeyError("weights")

class Listed(Plain):
    def describe(self):
        return ["mine"]

a_function = print
encoder: Encoder = Plain()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module of a name of its own and returns that name."""

    def write(content: str = MODULE) -> str:
        name = f"own_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


def plain(name: str, returned: Any = None, **options: Any) -> ClassEncoder:
    return ClassEncoder(f"python:{name}:Plain", {"returned": returned, **options})


def good(rows: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((rows, 3), np.float32), np.zeros(rows, np.bool_)


def test_embeddings_come_back_in_one_form(module: Callable[[], str]) -> None:
    values = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [1e-30, 0.0, 0.0], [2e30, 2e30, 0.0]])
    mask = np.array([False, True, False, False])
    expected = [[0.6, 0, 0.8], [0, 0, 0], [1, 0, 0], [np.sqrt(0.5), np.sqrt(0.5), 0]]
    given: list[tuple[Any, Any]] = [
        (values, mask),
        (torch.from_numpy(values).requires_grad_(), torch.from_numpy(mask)),
        (torch.from_numpy(values).to(torch.bfloat16), mask),
        (values.tolist(), mask.tolist()),
    ]
    for embeddings, noted in given:
        encoder = plain(module(), (embeddings, noted))
        for method in (encoder.encode_texts, encoder.encode_images):
            found, found_mask = method(["a"] * 4)
            np.testing.assert_allclose(found, expected, atol=2e-3)
            assert (found.dtype, found_mask.tolist()) == (np.float32, mask.tolist())
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 0, 1, 1], atol=1e-6)
    # What it gave is left as it was.
    assert values[0, 0] == 3.0
    halves = plain(module(), (values[:1].astype(np.float16), mask[:1]))
    np.testing.assert_allclose(halves.encode_texts(["a"])[0], expected[:1], atol=1e-6)


def test_numbers_that_are_none_stay_none(module: Callable[[], str]) -> None:
    values = np.array([[np.nan, 1, 1], [np.inf, 1, 1]])
    found, _ = plain(module(), (values, np.zeros(2, bool))).encode_texts(["a", "b"])
    assert not np.isfinite(found).all(axis=1).any()


def test_it_is_not_asked_for_nothing(module: Callable[[], str]) -> None:
    encoder = plain(module(), good)
    embeddings, mask = encoder.encode_texts([])
    assert (embeddings.shape, mask.shape) == ((0, 3), (0,))
    assert encoder._encoder.calls == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda n: None, "returned a NoneType; it must return two things"),
        (lambda n: np.ones((n, 3)), "returned a ndarray; it must return two things"),
        (lambda n: (*good(n), 1), "returned a tuple of 3; it must return two things"),
        (
            lambda n: (good(n + 1)[0], good(n)[1]),
            r"embeddings of shape \(3, 3\) for 2 rows; .* it must be \(2, 3\)",
        ),
        (lambda n: (np.ones((n, 4)), good(n)[1]), r"of shape \(2, 4\) for 2 rows"),
        (lambda n: (np.ones(n), good(n)[1]), r"of shape \(2,\) for 2 rows"),
        (lambda n: (np.ones((n, 3), int), good(n)[1]), "embeddings of int64; they must be float"),
        (lambda n: (torch.ones(n, 3).long(), good(n)[1]), "embeddings of int64"),
        (lambda n: ([[1.0], [1.0, 2.0]], good(n)[1]), "embeddings of object"),
        (lambda n: (["a"] * n, good(n)[1]), "embeddings of <U1"),
        (lambda n: (good(n)[0], None), r"a mask of object and shape \(\) for 2 rows"),
        (lambda n: (good(n)[0], np.zeros(n)), "a mask of float64 and shape"),
        (lambda n: (good(n)[0], np.zeros(n + 1, bool)), r"of bool and shape \(3,\) for 2 rows"),
    ],
)
@pytest.mark.parametrize("method", ["encode_texts", "encode_images"])
def test_what_is_not_embeddings_is_named(
    returned: Any, said: str, method: str, module: Callable[[], str]
) -> None:
    encoder = plain(module(), returned)
    with pytest.raises(WrongEmbeddingsError, match=said) as caught:
        getattr(encoder, method)(["a", "b"])
    message = str(caught.value)
    assert message.startswith(f"{method} of encoder.model python:own_")
    assert "\n" not in message


def test_its_description_says_where_it_comes_from(module: Callable[[], str]) -> None:
    name = module()
    encoder = ClassEncoder(f"python:{name}:Plain", {"said": {"layers": [1, 2]}}, device="cpu")
    assert json.loads(json.dumps(encoder.describe())) == {
        "model": "mine",
        "fingerprint": "abc",
        "dimension": 3,
        "context_length": None,
        "layers": [1, 2],
        "class": f"python:{name}:Plain",
        "options": {"said": {"layers": [1, 2]}},
    }
    assert encoder._encoder.device == "cpu"  # type: ignore[attr-defined]
    assert plain(name)._encoder.device is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"fingerprint": None}, "names no fingerprint"),
        ({"fingerprint": ""}, "names no fingerprint"),
        ({"model": 3}, "names no model"),
        ({"dimension": 0}, "names no dimension"),
        ({"dimension": True}, "names no dimension"),
        ({"dimension": 3.0}, "names no dimension"),
        ({"context_length": "long"}, "names no context_length"),
        ({"more": np.float32(1)}, r"what is not JSON \(TypeError: .*float32"),
        ({"more": float("nan")}, "what is not JSON"),
    ],
)
def test_descriptions_that_lack_something(
    said: Mapping[str, Any], message: str, module: Callable[[], str]
) -> None:
    name = module()
    with pytest.raises(ValueError, match=message) as caught:
        plain(name, said=said)
    assert str(caught.value).startswith(f"encoder.model: describe of python:{name}:Plain")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("own_lost.deep:Plain", {}, "a worker finds no module own_lost, of python:own_lost.deep"),
        ("{}.deep:Plain", {}, "a worker finds no module own_"),
        ("{}:Lost", {}, "has no class Lost"),
        ("{}:a_function", {}, "has no class a_function"),
        ("{}:Lacking", {}, "has no encode_texts and no encode_images; an encoder has the methods"),
        ("{}:Plain", {"colour": 1}, "with colour: TypeError: .*unexpected keyword"),
        ("{}:Refusing", {"token": "secret"}, "with token: RuntimeError: no weights here$"),
        ("{}:Refusing", {}, "with no options: TypeError: .*missing 1 required"),
        ("{}:Silent", {}, "describe of .* raised KeyError: 'weights'"),
        ("{}:Listed", {}, "returned a list of 1; it must return a dict"),
    ],
)
def test_classes_that_cannot_be_had(
    path: str, options: dict[str, Any], message: str, module: Callable[[], str]
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ClassEncoder(f"python:{path.format(module())}", options)
    text = str(caught.value)
    assert type(caught.value) is ValueError  # what comes through Ray as it is
    assert text.startswith("encoder.")
    assert "\n" not in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import a_package_that_is_lost", "needs the module a_package_that_is_lost, which"),
        ("raise RuntimeError('no\\nlicence')", "raised RuntimeError: no licence"),
        ("def f(:", "raised SyntaxError"),
    ],
)
def test_modules_that_cannot_be_imported(
    content: str, message: str, module: Callable[[str], str]
) -> None:
    name = module(content)
    with pytest.raises(ValueError, match=message) as caught:
        ClassEncoder(f"python:{name}:Plain", {})
    assert name in str(caught.value)
