"""What manifests say of the encoder, found out by a worker, as early in a run as can be.

Loading an encoder takes seconds and the memory of its weights; the driver has use for neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline import __version__
from pipeline.cluster.corpora import encoder_options
from pipeline.cluster.errors import user_error
from pipeline.cluster.outputs import embeddings_root, output
from pipeline.cluster.sources import said_embeddings
from pipeline.config import ImageSource, RunConfig, TextSource
from pipeline.encoders import quick_identity
from pipeline.stages.encoder_options import EncoderOptions
from pipeline.storage import locations
from pipeline.storage.corpus import Corpus
from pipeline.storage.manifest import open_manifest
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
    if options.is_class:
        # What it loads may have changed since a run before this one in the same process.
        _begun.pop(_place(key), None)
    elif _stored(config, key) is not None:
        return False
    _begin(options, key)
    return True


def described_encoder(config: RunConfig) -> dict[str, Any]:
    """Return what manifests say of the configured encoder, from the run before if it is the same.

    Loading the model to find out would be most of what a night costs in which nothing changed. A
    class outside the package is asked in every run: what it loads cannot be told from outside.

    Raises:
        ValueError: when there is no such encoder.
    """
    options = encoder_options(config)
    key = _key(options)  # before it is loaded: of files that change meanwhile, the old ones'
    if options.is_class:
        return _description_of(options, key)
    found = _stored(config, key)
    if found is not None:
        return found
    description = _description_of(options, key)
    kept = {"key": key, "description": description, "digest": combined(description)}
    locations.write_bytes(_url(config), json.dumps(kept, allow_nan=False).encode())
    return description


def is_by_encoder_of_now(config: RunConfig, embeddings: Corpus) -> bool:
    """Return whether the encoder, where it is a class outside the package, is what made these.

    Of other encoders that is told by their names, and embeddings that were given are by any.

    Raises:
        ValueError: when there is no such class.
    """
    stored = embeddings.path == embeddings_root(config, embeddings.modality)
    if not stored or not encoder_options(config).is_class:
        return True
    made_by = open_manifest(embeddings.path).encoder["fingerprint"]
    return bool(described_encoder(config)["fingerprint"] == made_by)


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
    wanted = _place(key)
    if wanted not in _begun:
        # Without a CPU of its own: it must not wait for a cluster that others keep busy.
        _begun[wanted] = ray.remote(num_cpus=0)(_describe).remote(options)
    return _begun[wanted]


def _place(key: str) -> tuple[str, str]:
    # Of another Ray than this one, begun earlier in the process, nothing is left.
    return ray.get_runtime_context().get_node_id(), key


def _describe(options: EncoderOptions) -> dict[str, Any]:
    # The task has no GPU, and nothing is encoded.
    device = "auto" if options.device == "auto" else "cpu"
    return replace(options, device=device, compile=False).build("text").describe()


def _key(options: EncoderOptions) -> str:
    identity = quick_identity(options.model, options.pretrained)
    return combined("encoder", __version__, identity, asdict(options))


def _url(config: RunConfig) -> str:
    return output(config, "plans", "encoder.json")
