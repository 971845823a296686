import json
import pickle
import struct
import tracemalloc
import uuid

import pytest
import torch

from pipeline.storage import (
    artifact_fingerprint,
    locations,
    read_artifact,
    write_artifact,
)
from pipeline.storage.artifacts import DamagedArtifactError, MissingArtifactError
from pipeline.storage.locations import StoreError

CONFIG = {"method": "anisoalign", "rank": 4, "scores": [1.5, None], "naïve": True}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "frame": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
        "index": torch.arange(6).reshape(2, 3).T,
    }


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "art")


def test_what_is_written_is_read(url):
    fingerprint = write_artifact(url, CONFIG, tensors())
    config, found = read_artifact(url)
    assert config == CONFIG
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert fingerprint == artifact_fingerprint(config, found)


def test_bytes_and_fingerprint_depend_on_content_only(tmp_path):
    first = write_artifact(str(tmp_path / "1"), CONFIG, tensors())
    shuffled = dict(reversed(CONFIG.items())), dict(reversed(tensors().items()))
    assert write_artifact(str(tmp_path / "2"), *shuffled) == first
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_fingerprint_sees_every_change():
    base = tensors()
    prints = {artifact_fingerprint(CONFIG, base)}
    prints.add(artifact_fingerprint({**CONFIG, "rank": 5}, base))
    prints.add(artifact_fingerprint(CONFIG, {**base, "scalar": torch.tensor(3.0000002)}))
    prints.add(artifact_fingerprint(CONFIG, {**base, "scalar": torch.tensor([3.0])}))
    prints.add(artifact_fingerprint(CONFIG, {**base, "empty": torch.empty(0, 3)}))
    renamed = {**base, "other": base["half"]}
    del renamed["half"]
    prints.add(artifact_fingerprint(CONFIG, renamed))
    assert len(prints) == 6


def test_a_config_that_is_no_json(url):
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(ValueError, match="plain JSON"):
            write_artifact(url, {"x": value}, {})


def test_missing_parts(url):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        read_artifact(url)
    write_artifact(url, CONFIG, tensors())
    locations.remove(locations.join(url, "model.safetensors"))
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        read_artifact(url)


def test_a_crash_while_replacing_leaves_nothing_that_loads(url, monkeypatch):
    write_artifact(url, CONFIG, tensors())
    whole = locations.write_bytes

    def crash(where, data):
        if where.endswith("config.json"):
            raise ValueError("crash")
        whole(where, data)

    monkeypatch.setattr(locations, "write_bytes", crash)
    with pytest.raises(ValueError, match="crash"):
        write_artifact(url, CONFIG, {"other": torch.ones(2)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="does not fit"):
        read_artifact(url)


def test_changed_parts(url):
    write_artifact(url, CONFIG, tensors())
    where = locations.join(url, "config.json")
    whole = json.loads(locations.read_bytes(where))
    locations.write_bytes(where, json.dumps({**whole, "rank": 5}).encode())
    with pytest.raises(ValueError, match="changed by hand"):
        read_artifact(url)
    for data in (b"", b"[]", b"{}", b"\xff", b"[" * 9999):
        locations.write_bytes(where, data)
        with pytest.raises(ValueError, match=r"config\.json"):
            read_artifact(url)


def safetensors_file(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def hostile_files():
    header = json.dumps({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    for shape, offsets, size in (
        ([-1, 4], [0, 16], 16),
        ([2**62, 4], [0, 16], 16),
        ([2**40, 2**40], [0, 0], 0),
        ([10**9], [0, 4 * 10**9], 16),
        ([4], [100, 116], 16),
        ([4], [16, 0], 16),
        ([1], [-4, 0], 4),
        ([1], [4, 8], 8),
        ([1], [0, 4], 8),
    ):
        wrong = {"x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
        yield safetensors_file(wrong, b"\0" * size)
    one = b'"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    yield safetensors_file(b"{" + one + b"," + one + b"}", b"\0" * 4)
    yield safetensors_file(b"{" + one + b"," + one.replace(b'"x"', b'"y"') + b"}", b"\0" * 4)
    yield safetensors_file(b'{"x":' * 100_000, b"")
    yield safetensors_file(b"[" * 100_000 + b"]" * 100_000, b"")
    yield safetensors_file({"x": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, b"\0" * 4)
    yield struct.pack("<Q", 2**40) + b"{}"
    yield struct.pack("<Q", 99 * 10**6) + b"{}"
    yield struct.pack("<Q", 2**63) + b"{}"
    yield struct.pack("<Q", len(header)) + header + b"\0" * 4
    yield struct.pack("<Q", 4) + b"nope"
    yield b""
    yield pickle.dumps({"x": 1})


@pytest.mark.parametrize("data", hostile_files(), ids=lambda data: str(data[8:24]))
def test_hostile_tensors_with_a_digest_that_fits(url, data):
    import hashlib

    write_artifact(url, CONFIG, tensors())
    where = locations.join(url, "config.json")
    whole = json.loads(locations.read_bytes(where))
    whole["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    locations.write_bytes(where, json.dumps(whole).encode())
    locations.write_bytes(locations.join(url, "model.safetensors"), data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"model\.safetensors in .* is damaged") as caught:
        read_artifact(url)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert "\n" not in str(caught.value)


def test_a_folder_of_links_is_read(tmp_path):
    """As a model hub's cache is."""
    fingerprint = write_artifact(str(tmp_path / "blobs"), CONFIG, tensors())
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert artifact_fingerprint(*read_artifact(str(tmp_path / "snapshot"))) == fingerprint


def test_at_every_place(place):
    fingerprint = write_artifact(locations.join(place, "art"), CONFIG, tensors())
    assert artifact_fingerprint(*read_artifact(locations.join(place, "art"))) == fingerprint


def test_a_store_that_fails_is_neither_a_missing_nor_a_damaged_artifact(url, monkeypatch):
    with pytest.raises(MissingArtifactError):
        read_artifact(url)
    write_artifact(url, CONFIG, tensors())

    def fail(where):
        raise StoreError("cannot read it: the store failed")

    with monkeypatch.context() as patch:
        patch.setattr(locations, "read_bytes", fail)
        with pytest.raises(StoreError, match="the store failed"):
            read_artifact(url)
    for name, data in (("model.safetensors", b"1"), ("config.json", b"{}"), ("config.json", b"{")):
        write_artifact(url, CONFIG, tensors())
        locations.write_bytes(locations.join(url, name), data)
        with pytest.raises(DamagedArtifactError):
            read_artifact(url)
    write_artifact(url, CONFIG, tensors())
    locations.remove(locations.join(url, "model.safetensors"))
    with pytest.raises(DamagedArtifactError):
        read_artifact(url)
    locations.remove(locations.join(url, "config.json"))
    with pytest.raises(MissingArtifactError):
        read_artifact(url)
