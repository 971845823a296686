"""Encoders that are classes outside the package: found by import path, made, and checked."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoders.interface import CLASS, Encoder

_METHODS = ("describe", "encode_texts", "encode_images")


class WrongEmbeddingsError(ValueError):
    """An encoder returned what is not embeddings and a mask; no other rows would help."""


class ClassEncoder:
    """An encoder by the name of its class, whose answers are checked and put in one form.

    Args:
        model: `python:package.module:Class`.
        options: keyword arguments of the class.
        device: a torch device, handed on as the keyword `device`; `auto` hands nothing on.

    Raises:
        ValueError: if there is no such class, it cannot be made with these options, or what it
            says of itself is not what `Encoder.describe` asks for.
    """

    def __init__(self, model: str, options: Mapping[str, Any], *, device: str = "auto") -> None:
        self._model, self._options = model, dict(options)
        given = self._options if device == "auto" else {**self._options, "device": device}
        self._encoder = _made(model, given)
        self._description = self._described()

    def describe(self) -> dict[str, Any]:
        """Return what the class says of itself, with its import path and options."""
        return dict(self._description)

    def encode_texts(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return embeddings `(n, d)`, float32 of unit length or zero, and which were cut, `(n,)`.

        Raises:
            WrongEmbeddingsError: if the class returns anything but what `Encoder` asks for.
        """
        return self._encoded("encode_texts", texts)

    def encode_images(
        self, images: Sequence[bytes]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return embeddings `(n, d)`, float32 of unit length or zero, and the undecodable, `(n,)`.

        Raises:
            WrongEmbeddingsError: if the class returns anything but what `Encoder` asks for.
        """
        return self._encoded("encode_images", images)

    def _encoded(
        self, method: str, inputs: Sequence[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        dimension = self._description["dimension"]
        if not inputs:
            return np.zeros((0, dimension), np.float32), np.zeros(0, np.bool_)
        returned = getattr(self._encoder, method)(inputs)
        where = f"{method} of encoder.model {self._model} returned"
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise WrongEmbeddingsError(
                f"{where} {_shown(returned)}; it must return two things, embeddings and a mask"
            )
        embeddings, mask = _array(returned[0]), _array(returned[1])
        if not np.issubdtype(embeddings.dtype, np.floating):
            raise WrongEmbeddingsError(
                f"{where} embeddings of {embeddings.dtype}; they must be floating point numbers"
            )
        if embeddings.shape != (len(inputs), dimension):
            raise WrongEmbeddingsError(
                f"{where} embeddings of shape {embeddings.shape} for {len(inputs)} rows; with the "
                f"dimension that it describes it must be ({len(inputs)}, {dimension})"
            )
        if mask.dtype != np.bool_ or mask.shape != (len(inputs),):
            raise WrongEmbeddingsError(
                f"{where} a mask of {mask.dtype} and shape {mask.shape} for {len(inputs)} rows; it "
                f"must be of bool and shape ({len(inputs)},)"
            )
        return _unit_rows(embeddings), mask

    def _described(self) -> dict[str, Any]:
        where = f"encoder.model: describe of {self._model}"
        try:
            found = self._encoder.describe()
        except Exception as error:
            raise ValueError(f"{where} raised {_one_line(error)}") from error
        if not isinstance(found, Mapping):
            raise ValueError(f"{where} returned {_shown(found)}; it must return a dict")
        try:
            said: dict[str, Any] = json.loads(json.dumps(dict(found), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} returned what is not JSON ({_one_line(error)})") from error
        for name in ("model", "fingerprint"):
            if not isinstance(said.get(name), str) or not said[name]:
                raise ValueError(f"{where} names no {name}; it must be a text that is not empty")
        if not _is_count(said.get("dimension")):
            raise ValueError(f"{where} names no dimension; it must be the length of an embedding")
        if "context_length" not in said or not (
            said["context_length"] is None or _is_count(said["context_length"])
        ):
            raise ValueError(
                f"{where} names no context_length; it must be a number of tokens, or None where "
                "nothing is cut"
            )
        return {**said, "class": self._model, "options": self._options}


def _made(model: str, given: Mapping[str, Any]) -> Encoder:
    module_name, _, class_name = model.removeprefix(CLASS).partition(":")
    # Written a moment ago, perhaps.
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ValueError(
                f"encoder.model: a worker finds no module {missing}, of {model}; it must be on the "
                "PYTHONPATH of every node, or in the --working-dir of the job"
            ) from error
        raise ValueError(
            f"encoder.model: {module_name} needs the module {missing}, which a worker does not find"
        ) from error
    except Exception as error:
        raise ValueError(
            f"encoder.model: importing {module_name} raised {_one_line(error)}"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"encoder.model: {module.__name__} has no class {class_name}")
    lacking = [name for name in _METHODS if not callable(getattr(found, name, None))]
    if lacking:
        raise ValueError(
            f"encoder.model: {model} has no {' and no '.join(lacking)}; an encoder has the methods "
            f"{', '.join(_METHODS)}"
        )
    try:
        made: Encoder = found(**given)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # The names alone: a value may be a credential.
        options = ", ".join(given) or "no options"
        raise ValueError(
            f"encoder.options: {model} could not be made with {options}: {_one_line(error)}"
        ) from error
    return made


def _array(value: Any) -> NDArray[Any]:
    """Return a tensor of any device, or what numpy takes for an array, as an array."""
    if isinstance(value, torch.Tensor):
        # numpy has no bfloat16.
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        return np.asarray(None)


def _unit_rows(embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows `(n, d)` scaled to unit length as float32; zero and infinite rows stay so."""
    rows = embeddings.astype(np.float32)
    with np.errstate(invalid="ignore"):
        # By the largest value first: squares of large or small numbers are none in float32.
        largest = np.abs(rows).max(axis=1, keepdims=True)
        np.divide(rows, largest, out=rows, where=largest > 0)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, lengths, out=rows, where=lengths > 0)
    return rows


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _shown(value: object) -> str:
    named = f"a {type(value).__name__}"
    return f"{named} of {len(value)}" if isinstance(value, tuple | list) else named


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
