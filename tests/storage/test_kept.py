import pytest

from pipeline.storage import kept as kept_module
from pipeline.storage.kept import kept


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(kept_module, "_file", None)


class Decoder:
    """Decodes to its number of times."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return b"x" * self.times


def test_the_parts_of_the_last_file_are_kept():
    decode = Decoder()
    first = [kept("a", "1", "rows", decode, len) for _ in range(3)]
    assert first == [b"x"] * 3
    assert kept("a", "1", "ids", decode, len) == b"xx"
    assert kept("a", "1", "rows", decode, len) == b"x"
    assert kept("a", "2", "rows", decode, len) == b"xxx"  # changed
    assert kept("b", "1", "rows", decode, len) == b"xxxx"
    assert kept("a", "2", "rows", decode, len) == b"xxxxx"  # only the last file's


def test_what_nothing_is_known_by_is_not_kept():
    decode = Decoder()
    assert [kept("a", None, "rows", decode, len) for _ in range(2)] == [b"x", b"xx"]


def test_what_is_too_large_is_not_kept(monkeypatch):
    monkeypatch.setattr(kept_module, "MOST_KEPT_BYTES", 2)
    decode = Decoder()
    assert kept("a", "1", "rows", decode, len) == b"x"
    assert [kept("a", "1", "ids", decode, len) for _ in range(2)] == [b"xx", b"xxx"]
    assert kept("a", "1", "rows", decode, len) == b"x"
    assert kept("b", "1", "ids", lambda: b"xx", len) == b"xx"
