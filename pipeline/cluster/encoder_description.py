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
from pipeline.cluster.corpora import encoder_options, output, said_embeddings
from pipeline.cluster.errors import user_error
from pipeline.config import ImageSource, RunConfig, TextSource
from pipeline.encoders import quick_identity
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.slices import combined

_begun: dict[tuple[str, str], ray.ObjectRef[dict[str, Any]]] = {}
"""The tasks that find descriptions out, by Ray's node of the driver and the encoder's key."""


def begin_description(config: RunConfig) -> bool:
    """Have a worker load the encoder where a side is plainly captions or images; return whether.

    What is not plain, such as a folder, is found out later, and the encoder asked for then.
    """
    sides: list[TextSource | ImageSource] = [config.text]
    if config.aligner.path is None:
        sides.append(config.image)
    encodes = any(said_embeddings(side) is False for side in sides)
    if not encodes:
        return False
    options = encoder_options(config)
    key = _key(options)
    if _stored(config, key) is not None:
        return False
    _begin(options, key)
    return True


def described_encoder(config: RunConfig) -> dict[str, Any]:
    """Return what manifests say of the configured encoder, from the run before if it is the same.

    Loading the model to find out would be most of what a night costs in which nothing changed.

    Raises:
        ValueError: when there is no such encoder.
    """
    options = encoder_options(config)
    key = _key(options)  # before it is loaded: of files that change meanwhile, the old ones'
    found = _stored(config, key)
    if found is not None:
        return found
    description = _description_of(options, key)
    kept = {"key": key, "description": description, "digest": combined(description)}
    locations.write_bytes(_url(config), json.dumps(kept, allow_nan=False).encode())
    return description


def _stored(config: RunConfig, key: str) -> dict[str, Any] | None:
    """Return the description that a run before kept; None without, or of another encoder."""
    try:
        stored = json.loads(locations.read_bytes(_url(config)))
        if stored["key"] != key or stored["digest"] != combined(stored["description"]):
            return None
        found: dict[str, Any] = stored["description"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never described here, or damaged
    return found


def _description_of(options: EncoderOptions, key: str) -> dict[str, Any]:
    try:
        return ray.get(_begin(options, key))
    except RayError as error:
        _begun.clear()
        cause = user_error(error)
        if cause is None:
            raise
        raise ValueError(str(cause)) from error


def _begin(options: EncoderOptions, key: str) -> ray.ObjectRef[dict[str, Any]]:
    # Of another Ray than this one, begun earlier in the process, nothing is left.
    wanted = (ray.get_runtime_context().get_node_id(), key)
    if wanted not in _begun:
        # Without a CPU of its own: it must not wait for a cluster that others keep busy.
        _begun[wanted] = ray.remote(num_cpus=0)(_describe).remote(options)
    return _begun[wanted]


def _describe(options: EncoderOptions) -> dict[str, Any]:
    return options.build("text").description


def _key(options: EncoderOptions) -> str:
    identity = quick_identity(options.model, options.pretrained)
    return combined("encoder", __version__, identity, asdict(options))


def _url(config: RunConfig) -> str:
    return output(config, "plans", "encoder.json")
