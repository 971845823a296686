"""Artifacts: a folder of config.json and model.safetensors, named by what is in it.

Loading executes nothing: JSON and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.storage import locations
from pipeline.storage.locations import redact_url

if TYPE_CHECKING:
    import torch


class MissingArtifactError(ValueError):
    """There is no artifact: the folder has no config.json."""


class DamagedArtifactError(ValueError):
    """An artifact is not whole, cannot be parsed, or was changed after it was written."""


CONFIG = "config.json"
TENSORS = "model.safetensors"
FINGERPRINT = "fingerprint"
_TENSORS_DIGEST = "tensors_sha256"
_OWN_KEYS = frozenset({FINGERPRINT, _TENSORS_DIGEST})


def write_artifact(
    url: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> str:
    """Write an artifact folder and return its fingerprint.

    config.json goes last and names the digests of the other files, so that a crash leaves nothing
    that loads. The same content gives the same bytes.

    Raises:
        ValueError: if the folder cannot be written, or the config is no JSON.
    """
    import safetensors.torch

    assert not _OWN_KEYS & config.keys(), f"{sorted(_OWN_KEYS)} are the artifact's own keys"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    fingerprint = artifact_fingerprint(config, plain)
    data = safetensors.torch.save(plain)
    locations.write_bytes(locations.join(url, TENSORS), data)
    whole = {
        **config,
        FINGERPRINT: fingerprint,
        _TENSORS_DIGEST: hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False)
    locations.write_bytes(locations.join(url, CONFIG), text.encode())
    return fingerprint


def read_artifact(url: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return an artifact's config (as it was given) and tensors, after checking its digests.

    Raises:
        MissingArtifactError: if there is none.
        DamagedArtifactError: if it is incomplete, damaged, or changed after it was written.
        StoreError: if the store fails.
    """
    import safetensors
    import safetensors.torch

    whole = _read_config(url)
    data = _read_file(url, TENSORS)
    if hashlib.sha256(data).hexdigest() != whole[_TENSORS_DIGEST]:
        raise DamagedArtifactError(
            f"{TENSORS} in {redact_url(url)} does not fit its {CONFIG}: {_AGAIN}"
        )
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
        if _named(data) != len(tensors):
            raise ValueError("a name stands twice in its header")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise DamagedArtifactError(f"{TENSORS} in {redact_url(url)} is damaged: {line}") from error
    config = {key: value for key, value in whole.items() if key not in _OWN_KEYS}
    if artifact_fingerprint(config, tensors) != whole[FINGERPRINT]:
        raise DamagedArtifactError(f"{CONFIG} in {redact_url(url)} was changed by hand: {_AGAIN}")
    return config, tensors


def artifact_fingerprint(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest (40 hex digits) of a config and of tensors' names, types, shapes, bytes.

    Raises:
        ValueError: if the config is no JSON.
    """
    import torch

    try:
        canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an artifact's config must be plain JSON: {error}") from error
    digest = hashlib.blake2b(canonical.encode(), digest_size=20)
    for name, tensor in sorted(tensors.items()):
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(f"\n{header}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


_AGAIN = "fetch or fit it again"


def _read_config(url: str) -> dict[str, Any]:
    data = _read_file(url, CONFIG)
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedArtifactError(f"{CONFIG} in {redact_url(url)} is damaged: {error}") from error
    if (
        not isinstance(whole, dict)
        or not isinstance(whole.get(FINGERPRINT), str)
        or not isinstance(whole.get(_TENSORS_DIGEST), str)
    ):
        raise DamagedArtifactError(f"{CONFIG} in {redact_url(url)} is not an artifact's: {_AGAIN}")
    return whole


def _named(data: bytes) -> int:
    """Return how many tensors a header names; safetensors keeps the last of equal names."""
    stop = 8 + int.from_bytes(data[:8], "little")
    pairs = json.loads(data[8:stop], object_pairs_hook=list)
    return sum(name != "__metadata__" for name, _ in pairs)


def _read_file(url: str, name: str) -> bytes:
    try:
        # Not `join_inside`: the names are ours, and a downloaded model is a folder of links.
        return locations.read_bytes(locations.join(url, name))
    except FileNotFoundError as error:
        kind = MissingArtifactError if name == CONFIG else DamagedArtifactError
        raise kind(f"{redact_url(url)} is not a whole artifact: {name} is missing") from error
