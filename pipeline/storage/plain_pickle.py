"""Pickles of numpy arrays, text, numbers, lists and dicts, read without unpickling them.

A machine for the few operations that such a pickle is made of. Nothing is imported and no object
of a pickle's choice is ever called: a name that it asks for is compared with the few below, and
what those stand for is done here. Any other name or operation ends it. What a length claims is
never allocated before the bytes are there.
"""

from __future__ import annotations

import math
import pickletools
import re
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_PROTOCOL = 5
_KNOWN_DTYPE = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|[US]\d{1,9})")
_INT64 = range(-(2**63), 2**63)
_MOST_DIGITS = 24


class _Name(Enum):
    """What a pickle of arrays asks for by name."""

    RECONSTRUCT = "_reconstruct"
    FROM_BUFFER = "_frombuffer"
    SCALAR = "scalar"
    ARRAY = "ndarray"
    DTYPE = "dtype"
    ENCODE = "encode"


_NAMES = {
    ("numpy", "ndarray"): _Name.ARRAY,
    ("numpy", "dtype"): _Name.DTYPE,
    ("numpy.core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _Name.SCALAR,
    ("numpy._core.multiarray", "scalar"): _Name.SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _Name.FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _Name.FROM_BUFFER,
    ("_codecs", "encode"): _Name.ENCODE,  # bytes in protocols 0 to 2
}


class PickledArray:
    """An array of a pickle; `values` is None until its state came."""

    __slots__ = ("values",)

    def __init__(self, values: npt.NDArray[Any] | None = None) -> None:
        self.values = values


class _Dtype:
    __slots__ = ("kind",)

    def __init__(self, kind: np.dtype[Any]) -> None:
        self.kind = kind


class RefusedPickleError(ValueError):
    """A pickle is damaged, or asks for more than is read."""


def read_plain_pickle(data: bytes) -> Any:
    """Return what a pickle holds: text, numbers, lists, dicts, tuples and `PickledArray`.

    Bytes come as views of `data`, and so do the arrays' values.

    Raises:
        RefusedPickleError: if it is damaged, or asks for anything else.
    """
    machine = _Machine(memoryview(data))
    try:
        return machine.run()
    except RefusedPickleError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        line = (str(error).splitlines() or [""])[0]
        raise RefusedPickleError(f"it is damaged near byte {machine.at} ({line})") from error


class _Machine:
    """Stack, marks and memo of a pickle that is read."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the object that the pickle is of."""
        data, operations = self.data, _OPERATIONS
        while True:
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                if len(self.stack) != 1 or self.marks:
                    raise RefusedPickleError("it is damaged: it ends too early")
                if self.at != len(data):
                    raise RefusedPickleError("something stands behind its end")
                return self.stack.pop()
            operation = operations[code]
            if operation is None:
                raise RefusedPickleError(
                    f"it has the operation {_operation_name(code)} at byte {self.at - 1}, which "
                    "no pickle of arrays, text, lists and dicts needs"
                )
            operation(self)

    # What the operations are made of.

    def take(self, count: int) -> memoryview:
        """Return the next bytes."""
        stop = self.at + count
        if count < 0 or stop > len(self.data):
            raise RefusedPickleError(f"it is cut short: {count} bytes are claimed at {self.at}")
        piece = self.data[self.at : stop]
        self.at = stop
        return piece

    def number(self, size: int) -> int:
        """Return the next unsigned little-endian integer."""
        return int.from_bytes(self.take(size), "little")

    def byte(self) -> int:
        """Return the next byte."""
        value = self.data[self.at]
        self.at += 1
        return value

    def sized(self, size: int) -> memoryview:
        """Return bytes whose length, of `size` bytes, stands before them."""
        return self.take(self.number(size))

    def line(self) -> str:
        """Return the rest of a line of protocol 0."""
        # A copy in steps: a view cannot be searched, and a file may have one line only.
        start, stop = self.at, self.at
        while True:
            piece = bytes(self.data[stop : stop + 256])
            end = piece.find(b"\n")
            if end >= 0:
                self.at = stop + end + 1
                return bytes(self.data[start : stop + end]).decode("latin-1")
            if not piece:
                raise RefusedPickleError("it is cut short in a line")
            stop += len(piece)

    def integer(self, value: int) -> None:
        """Push an integer."""
        if value not in _INT64:
            raise RefusedPickleError("it holds an integer of more than 64 bits")
        self.stack.append(value)

    def digits(self, text: str) -> None:
        """Push an integer written out."""
        if len(text) > _MOST_DIGITS:
            raise RefusedPickleError("it holds an integer of more than 64 bits")
        self.integer(int(text))

    def marked(self) -> list[Any]:
        """Return and take away all above the last mark."""
        mark = self.marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the topmost values."""
        if len(self.stack) < count:
            raise RefusedPickleError("it is damaged: a tuple lacks values")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(values)

    def remember(self, index: int) -> None:
        """Keep the topmost value."""
        self.memo[index] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        """Append to the topmost value, which has to be a list."""
        if type(self.stack[-1]) is not list:
            raise RefusedPickleError("it appends to what is no list")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        """Set items of the topmost value, which has to be a dict, by text or integers."""
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise RefusedPickleError("it sets items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise RefusedPickleError(f"it has a key that is {_kind(key)}, not text")
            target[key] = value

    def name(self, module: object, name: object) -> None:
        """Push what a known name stands for."""
        if type(module) is not str or type(name) is not str:
            raise RefusedPickleError("it asks for a name that is no text")
        found = _NAMES.get((module, name))
        if found is None:
            raise RefusedPickleError(f"it asks for {ascii(f'{module}.{name}')[1:-1][:200]}")
        self.stack.append(found)

    def reduce(self) -> None:
        """Do what a known name stands for with its arguments."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not _Name or type(arguments) is not tuple:
            raise RefusedPickleError(f"it calls {_kind(name)}")
        self.stack.append(_made(name, arguments))

    def build(self) -> None:
        """Give an array or its type what it was pickled with."""
        state, target = self.stack.pop(), self.stack[-1]
        match target, state:
            case PickledArray(), (int(), tuple(shape), _Dtype() as dtype, fortran, buffer):
                target.values = _array(buffer, dtype, shape, "F" if fortran is True else "C")
            case _Dtype(), (int(), "<" | ">" | "|" | "=" as order, None, None, None, _, _, _):
                target.kind = target.kind.newbyteorder(order)
            case _:
                raise RefusedPickleError(f"it sets the state of {_kind(target)} to another kind's")


def _made(name: _Name, arguments: tuple[Any, ...]) -> Any:
    """Return what numpy would make of the arguments, for the few that arrays are pickled with."""
    match name, arguments:
        case _Name.RECONSTRUCT, (_Name.ARRAY, tuple(), memoryview()):
            return PickledArray()
        case _Name.DTYPE, (str(kind), *rest) if len(rest) <= 2:
            return _Dtype(_dtype(kind))
        case _Name.FROM_BUFFER, (buffer, _Dtype() as dtype, tuple(shape), "C" | "F" as order):
            return PickledArray(_array(buffer, dtype, shape, order))
        case _Name.FROM_BUFFER, (buffer, _Dtype() as dtype, tuple(shape), "C" | "F" as order, None):
            return PickledArray(_array(buffer, dtype, shape, order))
        case _Name.ARRAY, (tuple(shape), str(kind), buffer):
            return PickledArray(_array(buffer, _Dtype(_dtype(kind)), shape, "C"))
        case _Name.SCALAR, (_Dtype() as dtype, buffer):
            return _array(buffer, dtype, (1,), "C")[0].item()
        case _Name.ENCODE, (str(text), "latin1"):
            return memoryview(text.encode("latin-1"))
    raise RefusedPickleError(f"it asks for {name.value} with other arguments than numpy's")


def _dtype(kind: str) -> np.dtype[Any]:
    if not _KNOWN_DTYPE.fullmatch(kind):
        raise RefusedPickleError(f"it holds an array of {ascii(kind)[:100]}, which is not read")
    return np.dtype(kind)


def _array(buffer: object, dtype: _Dtype, shape: tuple[Any, ...], order: Any) -> npt.NDArray[Any]:
    """Return an array over a buffer that has exactly its bytes."""
    if type(buffer) is not memoryview:
        raise RefusedPickleError(f"it holds an array made of {_kind(buffer)}, not of bytes")
    if not all(type(size) is int and 0 <= size < 2**40 for size in shape) or len(shape) > 4:
        raise RefusedPickleError("it holds an array of a shape that is none")
    if math.prod(shape) * dtype.kind.itemsize != buffer.nbytes:
        raise RefusedPickleError(
            f"it claims an array of shape {shape} and type {dtype.kind} in {buffer.nbytes} bytes"
        )
    if not buffer.nbytes:
        return np.empty(shape, dtype.kind)
    return np.frombuffer(buffer, dtype.kind).reshape(shape, order=order)


def _kind(value: object) -> str:
    return value.value if isinstance(value, _Name) else type(value).__name__


def _operation_name(code: int) -> str:
    names = {one.code: one.name for one in pickletools.opcodes}
    return names.get(chr(code), hex(code))


def _boolean_or_integer(machine: _Machine) -> None:
    text = machine.line()
    if text in ("00", "01"):
        machine.stack.append(text == "01")
    else:
        machine.digits(text)


def _protocol(machine: _Machine) -> None:
    version = machine.byte()
    if version > MOST_PROTOCOL:
        raise RefusedPickleError(f"it is of protocol {version}, which is not known")


def _frame(machine: _Machine) -> None:
    machine.number(8)  # how much could be read at once: all of it is here


def _item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


def _text(view: memoryview) -> str:
    return str(view, "utf-8", "surrogatepass")


def _list(machine: _Machine) -> None:
    machine.stack.append(machine.marked())


def _dict(machine: _Machine) -> None:
    values = machine.marked()
    machine.stack.append({})
    machine.update(values)


def _named_on_stack(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _appended(machine: _Machine) -> None:
    value = machine.stack.pop()
    machine.extend([value])


_STOP = ord(".")
_Operation = Callable[[_Machine], None]
_BY_SIGN: dict[bytes, _Operation] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": lambda machine: machine.marks.append(len(machine.stack)),
    b"\x94": lambda machine: machine.remember(len(machine.memo)),
    b"p": lambda machine: machine.remember(int(machine.line()[:_MOST_DIGITS])),
    b"q": lambda machine: machine.remember(machine.byte()),
    b"r": lambda machine: machine.remember(machine.number(4)),
    b"g": lambda machine: machine.stack.append(machine.memo[int(machine.line()[:_MOST_DIGITS])]),
    b"h": lambda machine: machine.stack.append(machine.memo[machine.byte()]),
    b"j": lambda machine: machine.stack.append(machine.memo[machine.number(4)]),
    b"N": lambda machine: machine.stack.append(None),
    b"\x88": lambda machine: machine.stack.append(True),
    b"\x89": lambda machine: machine.stack.append(False),
    b"I": _boolean_or_integer,
    b"L": lambda machine: machine.digits(machine.line().removesuffix("L")),
    b"J": lambda machine: machine.integer(int.from_bytes(machine.take(4), "little", signed=True)),
    b"K": lambda machine: machine.integer(machine.byte()),
    b"M": lambda machine: machine.integer(machine.number(2)),
    b"\x8a": lambda machine: machine.integer(
        int.from_bytes(machine.take(machine.byte()), "little", signed=True)
    ),
    b"F": lambda machine: machine.stack.append(float(machine.line())),
    b"G": lambda machine: machine.stack.append(struct.unpack(">d", machine.take(8))[0]),
    b"V": lambda machine: machine.stack.append(
        machine.line().encode("latin-1").decode("raw-unicode-escape")
    ),
    b"X": lambda machine: machine.stack.append(_text(machine.sized(4))),
    b"\x8c": lambda machine: machine.stack.append(_text(machine.take(machine.byte()))),
    b"\x8d": lambda machine: machine.stack.append(_text(machine.sized(8))),
    b"B": lambda machine: machine.stack.append(machine.sized(4)),
    b"C": lambda machine: machine.stack.append(machine.take(machine.byte())),
    b"\x8e": lambda machine: machine.stack.append(machine.sized(8)),
    b"\x96": lambda machine: machine.stack.append(machine.sized(8)),
    b"]": lambda machine: machine.stack.append([]),
    b"l": _list,
    b"a": _appended,
    b"e": lambda machine: machine.extend(machine.marked()),
    b"}": lambda machine: machine.stack.append({}),
    b"d": _dict,
    b"s": _item,
    b"u": lambda machine: machine.update(machine.marked()),
    b")": lambda machine: machine.stack.append(()),
    b"t": lambda machine: machine.stack.append(tuple(machine.marked())),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"c": lambda machine: machine.name(machine.line(), machine.line()),
    b"\x93": _named_on_stack,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
_OPERATIONS: list[_Operation | None] = [_BY_SIGN.get(bytes([code])) for code in range(256)]
"""By code; None is refused: persistent ids, extension codes, instances, buffers out of band."""
