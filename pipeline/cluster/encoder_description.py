"""What manifests say of the encoder, found out by a worker, as early in a run as can be.

Loading an encoder takes seconds and the memory of its weights; the driver has use for neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline import __version__
from pipeline.cluster.corpora import encoder_options, output
from pipeline.cluster.errors import user_error
from pipeline.config import RunConfig
from pipeline.encoders import quick_identity
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.slices import combined

_begun: dict[tuple[str, EncoderOptions], ray.ObjectRef[dict[str, Any]]] = {}
"""Descriptions by Ray job and encoder, or the tasks that are finding them out."""


def begin_description(config: RunConfig) -> bool:
    """Have a worker load the encoder where a side looks like captions or images; return whether.

    A wrong guess costs nothing but that worker's time.
    """
    encodes = any(
        side.path is not None and side.embedding_column is None and not side.path.endswith(".npy")
        for side in (config.text, config.image)
    )
    if not encodes or _stored(config) is not None:
        return False
    _begin(encoder_options(config))
    return True


def described_encoder(config: RunConfig) -> dict[str, Any]:
    """Return what manifests say of the configured encoder, from the run before if it is the same.

    Loading the model to find out would be most of what a night costs in which nothing changed.

    Raises:
        ValueError: when there is no such encoder.
    """
    found = _stored(config)
    if found is not None:
        return found
    options = encoder_options(config)
    description = _description_of(options)
    kept = {
        "key": _key(options),
        "description": description,
        "digest": combined(description),
    }
    locations.write_bytes(_url(config), json.dumps(kept, allow_nan=False).encode())
    return description


def _stored(config: RunConfig) -> dict[str, Any] | None:
    """Return the description that a run before kept; None without, or of another encoder."""
    try:
        stored = json.loads(locations.read_bytes(_url(config)))
        if stored["key"] != _key(encoder_options(config)):
            return None
        if stored["digest"] != combined(stored["description"]):
            return None
        found: dict[str, Any] = stored["description"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never described here, or damaged
    return found


def _description_of(options: EncoderOptions) -> dict[str, Any]:
    try:
        return ray.get(_begin(options))
    except RayError as error:
        _begun.clear()
        cause = user_error(error)
        if cause is None:
            raise
        raise ValueError(str(cause)) from error


def _begin(options: EncoderOptions) -> ray.ObjectRef[dict[str, Any]]:
    wanted = (ray.get_runtime_context().get_job_id(), options)
    if wanted not in _begun:
        _begun[wanted] = ray.remote(_describe).remote(options)
    return _begun[wanted]


def _describe(options: EncoderOptions) -> dict[str, Any]:
    return options.build("text").description


def _key(options: EncoderOptions) -> str:
    identity = quick_identity(options.model, options.pretrained)
    return combined("encoder", __version__, identity, asdict(options))


def _url(config: RunConfig) -> str:
    return output(config, "plans", "encoder.json")
