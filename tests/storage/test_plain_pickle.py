import contextlib
import copyreg
import io
import os
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.plain_pickle import (
    PickledArray,
    RefusedPickleError,
    read_plain_pickle,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    # An empty bytes object of protocols 0 to 2 is a call of `bytes`, which is not read.
    | st.text()
    | st.binary(min_size=1),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def plain(value):
    """What was read with the arrays and bytes that stand in it."""
    if isinstance(value, PickledArray):
        return value.values
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(one) for one in value)
    return value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=60, deadline=None)
@given(value=PLAIN)
def test_plain_values_are_what_was_pickled(protocol, value):
    assert plain(read_plain_pickle(pickle.dumps(value, protocol=protocol))) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i8", "|u1", "<U3", "|S2"])
def test_arrays_are_what_was_pickled(protocol, dtype):
    whole = np.arange(12).reshape(3, 4).astype(dtype)
    arrays = [whole, whole[1], whole.T, np.asfortranarray(whole), whole[:0], whole[:, ::2]]
    if protocol < 3:
        arrays = [one for one in arrays if one.size]
    # One type object for all of them, as numpy pickles it, and one array twice.
    data = pickle.dumps({"arrays": arrays, "again": arrays[0]}, protocol=protocol)
    found = plain(read_plain_pickle(data))
    for one, wanted in zip([*found["arrays"], found["again"]], [*arrays, whole], strict=True):
        assert (one.dtype, one.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_of_numpy(protocol):
    scalars = [np.float32(1.5), np.int64(-3), np.str_("é")]
    assert read_plain_pickle(pickle.dumps(scalars, protocol=protocol)) == [1.5, -3, "é"]


@pytest.mark.parametrize("old", [True, False])
def test_the_names_of_older_and_newer_numpy(old):
    data = pickle.dumps(np.arange(3.0), protocol=2)
    names = (b"numpy.core.multiarray", b"numpy._core.multiarray")
    data = data.replace(names[old], names[not old])
    np.testing.assert_array_equal(plain(read_plain_pickle(data)), [0, 1, 2])
    assert names[not old] in data


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Do nothing; what is called has to look as if it could be."""


class Stated:
    """Pickled as what `make` gives, with a state set afterwards."""

    def __init__(self, function, arguments, state):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def reconstructed(*arguments):
    return Call(np.zeros(1).__reduce__()[0], *arguments)


class Subclass(np.ndarray):
    """An array of a type of its own."""


def touched(path):
    """Where a crafted pickle would leave its mark."""
    path.write_text("ran")


@pytest.fixture
def mark(tmp_path):
    """A file that is there only if something ran."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def crafted(mark):
    """Objects that run something when they are unpickled, by what they try."""
    command = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w')"
    array = np.arange(3.0)
    make, (_, shape, code_b), state = array.__reduce__()
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "in a row": [{"id": "a", "embed": Call(os.system, command)}],
        "in a key": {Call(eval, f"{code} and 'a'"): 1},
        "nested": Call(getattr, Call(__import__, "os"), "system"),
        "nested call": Call(Call(getattr, Call(__import__, "os"), "system"), command),
        "reconstruct of another type": Stated(make, (Subclass, shape, code_b), state),
        "reconstruct of a call": reconstructed(Call(eval, code), (0,), b"b"),
        "state of a call": Stated(make, (np.ndarray, (0,), b"b"), Call(eval, code)),
        "shape of a call": Stated(
            make, (np.ndarray, (0,), b"b"), (1, Call(eval, code), *state[2:])
        ),
        "objects": np.array([Call(os.system, command)], dtype=object),
        "a type of objects": np.dtype("O"),
        "a type with fields": np.dtype([("a", "f4")]),
        "a type of a call": Call(np.dtype, Call(eval, f"{code} and 'f4'")),
        "a structured array": np.zeros(2, [("a", "f4"), ("b", "O")]),
        "load": Call(np.load, str(mark)),
        "a file": Call(io.open, str(mark), "w"),
        "bytearray": bytearray(3),
        "a set": {1, 2},
        "a class": Call,
        "an instance": touched,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("what", crafted("."))
def test_crafted_pickles_are_refused_and_nothing_runs(what, protocol, mark):
    if what == "bytearray" and protocol == 5:
        pytest.skip("plain bytes there")
    data = pickle.dumps(crafted(mark)[what], protocol=protocol)
    with pytest.raises(RefusedPickleError) as caught:
        read_plain_pickle(data)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("what", ["os.system", "builtins.eval", "nested call", "a file"])
def test_the_crafted_pickles_would_run(what, mark):
    """The test above shows something only because of this."""
    pickle.loads(pickle.dumps(crafted(mark)[what]))
    assert mark.exists()
    mark.unlink()


def text(value):
    """A short string of protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def by_hand(mark):
    """Pickles that no pickler writes."""
    command = f"touch {mark}"
    line = command.encode()
    call = b"V" + line + b"\n\x85R."
    return {
        "GLOBAL": b"cos\nsystem\n" + call,
        "GLOBAL of posix": b"cposix\nsystem\n" + call,
        "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93" + call,
        "STACK_GLOBAL of no text": b"\x80\x04K\x01K\x02\x93" + call,
        "a dotted name": b"\x80\x04" + text("numpy") + text("os.system") + b"\x93" + call,
        "a dotted name below": b"cnumpy\nndarray.__class__\n" + call,
        "a name in numpy": b"cnumpy\nload\n" + call,
        "a name in multiarray": b"cnumpy.core.multiarray\nfromfile\n" + call,
        "INST": b"(V" + line + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nV" + line + b"\no.",
        "OBJ of ndarray": b"(cnumpy\nndarray\nK\x01\x85o.",
        "NEWOBJ": b"\x80\x02cnumpy\nndarray\nK\x01\x85\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cnumpy\nndarray\n)}\x92.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "PERSID": b"Pany\n.",
        "BINPERSID": b"K\x01Q.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05C\x01a\x98.",
        "a call of text": b"Vos.system\n" + call,
        "BUILD of a list": b"]}b.",
        "BUILD of a name": b"cnumpy\nndarray\n}Va\nK\x01sb.",
        "BUILD of a name's slots": b"cnumpy\nndarray\nN}V__call__\nK\x01s\x86b.",
        "a call of a type": b"cnumpy\nndarray\n)R.",
        "protocol 6": b"\x80\x06N.",
    }


@pytest.mark.parametrize("what", by_hand("."))
def test_operations_by_hand_are_refused_and_nothing_runs(what, mark):
    with pytest.raises(RefusedPickleError):
        read_plain_pickle(by_hand(mark)[what])


@pytest.mark.parametrize("what", ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ"])
def test_the_operations_by_hand_would_run(what, mark):
    pickle.loads(by_hand(mark)[what])
    assert mark.exists()
    mark.unlink()


def test_a_registered_extension_is_refused(mark):
    copyreg.add_extension("os", "system", 0x7F)
    try:
        data = b"\x80\x02\x82\x7fV" + f"touch {mark}".encode() + b"\n\x85R."
        with pytest.raises(RefusedPickleError, match="EXT1"):
            read_plain_pickle(data)
    finally:
        copyreg.remove_extension("os", "system", 0x7F)


def test_buffers_out_of_band_are_refused():
    buffers = []
    data = pickle.dumps(np.arange(3.0), protocol=5, buffer_callback=buffers.append)
    assert buffers
    with pytest.raises(RefusedPickleError, match="BUFFER"):
        read_plain_pickle(data)


def test_no_name_of_the_pickle_is_imported(mark, monkeypatch):
    (mark.parent / "crafted_module.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(mark.parent)
    with pytest.raises(RefusedPickleError, match=r"asks for crafted_module\.x"):
        read_plain_pickle(b"ccrafted_module\nx\n.")


FRAME = b"\x80\x04\x95" + struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"x.",
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x02B" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        b"L" + b"9" * 10_000 + b"L\n.",
        FRAME,
        b"\x80\x02h\x07.",
        b"\x80\x02e.",
        b"\x80\x02N",
        b"\x80\x02NN.",
        b"\x80\x02(N.",
        b"\x80\x02N.N.",
        b"\x80\x02\x85.",
        b"V" + b"x" * 1000,
        b"\xff",
        b"",
    ],
)
def test_damaged_pickles_and_lies_about_lengths(data):
    tracemalloc.start()
    try:
        with pytest.raises(RefusedPickleError):
            read_plain_pickle(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_memo_of_a_huge_index_takes_no_room():
    tracemalloc.start()
    try:
        assert read_plain_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.") is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_array_that_claims_more_than_its_bytes():
    def pickled(shape, itemsize="<f4", raw=b"12345678"):
        return b"".join(
            (
                b"\x80\x03cnumpy\nndarray\n(",
                shape,
                b"X" + struct.pack("<I", len(itemsize)) + itemsize.encode(),
                b"C" + bytes([len(raw)]) + raw,
                b"tR.",
            )
        )

    good = plain(read_plain_pickle(pickled(b"K\x02\x85")))
    assert good.shape == (2,)
    huge = struct.pack("<i", 2**31 - 1)
    for shape in (b"K\x03\x85", b"J" + huge + b"\x85", b"J" + huge + b"J" + huge + b"\x86"):
        with pytest.raises(RefusedPickleError, match="claims an array"):
            read_plain_pickle(pickled(shape))
    for shape in (b"J\xff\xff\xff\xff\x85", b"G" + b"\x00" * 8 + b"\x85", b"\x88\x85"):
        with pytest.raises(RefusedPickleError, match="a shape that is none"):
            read_plain_pickle(pickled(shape))
    with pytest.raises(RefusedPickleError, match="claims an array"):
        read_plain_pickle(pickled(b"K\x02\x85", "U99999999"))
    for kind in ("O", "|O8", "V8", "f4,f4", "M8[s]", "c8", "f16", "(2,)f4"):
        with pytest.raises(RefusedPickleError, match="which is not read"):
            read_plain_pickle(pickled(b"K\x02\x85", kind))


def test_lists_in_lists_without_end_are_read_without_end_of_stack():
    depth = 200_000
    found = read_plain_pickle(b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []


def test_references_shared_a_billion_times_take_no_room():
    data = b"]q\x00"
    for level in range(1, 40):
        data += (
            b"](" + b"h" + bytes([level - 1]) + b"h" + bytes([level - 1]) + b"eq" + bytes([level])
        )
    start = time.perf_counter()
    read_plain_pickle(b"(" + data + b"t.")
    assert time.perf_counter() - start < 5


@settings(max_examples=300, deadline=None)
@given(
    junk=st.binary(max_size=60),
    at=st.integers(0, 400),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_junk_in_a_good_pickle_is_read_or_refused(junk, at, protocol):
    data = pickle.dumps([{"id": "a", "embed": np.arange(3, dtype=np.float16)}], protocol=protocol)
    data = data[:at] + junk + data[at + len(junk) :]
    with contextlib.suppress(RefusedPickleError):
        read_plain_pickle(data)
