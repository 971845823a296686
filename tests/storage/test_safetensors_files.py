import json

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.storage import locations, plan, read_unit
from tests.storage.samples import read_all, text_corpus, unit_norm


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_is_what_torch_reads(tmp_path, dtype):
    wanted = torch.from_numpy(unit_norm(9, 16)).to(dtype)
    safetensors.torch.save_file(
        {"embedding": wanted, "other": torch.ones(4, dtype=torch.float8_e4m3fn)},
        tmp_path / "a.safetensors",
        {"written by": "anyone"},
    )
    table = read_all(text_corpus(tmp_path), 4)
    exact = wanted.to(torch.float64)
    exact = exact / exact.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(table.column("embedding").to_pylist(), exact.numpy(), atol=1e-7)
    with pytest.raises(ValueError, match="has no array other; it has embedding"):
        plan(text_corpus(tmp_path, embedding_column="other"), 4)


def test_rows_are_read_by_range(tmp_path, monkeypatch):
    tensors = {"a": torch.ones(5), "e": torch.from_numpy(unit_norm(100, 16))}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    units = plan(text_corpus(tmp_path), 10).units
    fetched = []
    real = locations.read_bytes
    monkeypatch.setattr(
        locations, "read_bytes", lambda *args: fetched.append(args[1:]) or real(*args)
    )
    read_unit(text_corpus(tmp_path), units[3])
    ((start, stop),) = fetched
    assert stop - start == 10 * 16 * 4


F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header claims 0 bytes"),
        (b"\x00" * 7, "header"),
        (raw({"e": F32}, bytes(16), length=2**63), "its header claims"),
        (raw({"e": F32}, bytes(16), length=10_000), "its header claims"),
        (raw(b"{" * 100_000, bytes(16)), "its header is damaged"),
        (raw(b'{"e": \xff}', bytes(16)), "its header is damaged"),
        (raw(b'{"e": 1, "e": 2}', bytes(16)), "names something twice"),
        (raw([1]), "no JSON object"),
        (raw({"e": F32}, bytes(15)), "cut short"),
        (raw({"e": F32}, bytes(17)), "cut short"),
        (raw({"e": {**F32, "shape": [2, 3]}}, bytes(16)), "has 16 bytes for F32 of shape"),
        (raw({"e": {**F32, "shape": [-2, -2]}}, bytes(16)), "damaged"),
        (raw({"e": {**F32, "shape": [2**40, 2**40]}}, bytes(16)), "damaged"),
        (raw({"e": {**F32, "shape": [True, 4]}}, bytes(16)), "damaged"),
        (raw({"e": {**F32, "data_offsets": [16, 0]}}, bytes(16)), "damaged"),
        (raw({"e": {**F32, "data_offsets": [0, 2**70]}}, bytes(16)), "has .* bytes for"),
        (raw({"e": {"dtype": "F32"}}, bytes(16)), "damaged"),
        (raw({"e": 1}, bytes(16)), "damaged"),
        (raw({"e": F32, "f": F32}, bytes(16)), "overlap, or leave a gap"),
        (raw({"e": {**F32, "data_offsets": [4, 20]}}, bytes(20)), "overlap, or leave a gap"),
        (raw({"e": {**F32, "dtype": "F8_E4M3"}}, bytes(16)), "no array that could be"),
        (raw({"e": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}), "no row"),
    ],
)
def test_damaged_files(tmp_path, data, message):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.safetensors.*{message}|{message}") as caught:
        plan(text_corpus(tmp_path), 10)
    assert "a.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000
