"""WebDataset: tar files of KEY.json and KEY.npy, the bytes of which depend on the rows alone."""

from __future__ import annotations

import hashlib
import io
import re
from typing import ClassVar
from urllib.parse import quote

from pipeline.export.arrays import npy_header
from pipeline.export.layout import CONVERSATIONS, Layout, PartFiles, compact
from pipeline.export.source import Shard
from pipeline.schema import ID, TEXT

_BLOCK = 512
_RECORD = 20 * _BLOCK
_LONGEST_KEY = 95
"""With `.json` a name of 100 bytes, the most that a plain tar header holds."""
_KEPT_OF_LONG = 60


class WebDataset(Layout):
    """One tar a shard, two members a row."""

    name: ClassVar[str] = "webdataset"
    has_conversations: ClassVar[bool] = True
    title: ClassVar[str] = "WebDataset"
    reading: ClassVar[str] = (
        "Each `NNNNN.tar` holds `KEY.json` (id, text, conversations and further columns) and "
        "`KEY.npy` (the embedding). KEY is the id with every sign but A-Z a-z 0-9 _ - written as "
        "%XX, a long one cut and told apart by a digest; the id itself stands in the JSON.\n\n"
        "```python\n"
        "import webdataset\n\n"
        'rows = webdataset.WebDataset("FOLDER/{00000..LAST}.tar", shardshuffle=100).decode()\n'
        'pairs = rows.to_tuple("json", "npy")\n'
        "```\n"
    )

    def part(self, shard: Shard, number: int, parts: int) -> PartFiles:
        """Return the tar."""
        ids, texts, embeddings = shard.ids(), shard.texts(), shard.embeddings()
        conversations = self.conversations(shard, ids, texts)
        passed = [name for name in shard.passed_through if name != CONVERSATIONS]
        columns = {name: shard.values(name) for name in passed}
        header = npy_header(embeddings.shape[1:], embeddings.dtype)
        tar = io.BytesIO()
        for row, (identifier, turns) in enumerate(zip(ids, conversations, strict=True)):
            key = member_key(identifier)
            record = {
                ID: identifier,
                TEXT: texts[row],
                CONVERSATIONS: turns,
                **{name: values[row] for name, values in columns.items()},
            }
            _add(tar, f"{key}.json", compact(record))
            _add(tar, f"{key}.npy", header + embeddings[row].tobytes())
        tar.write(bytes(2 * _BLOCK))
        tar.write(bytes(-tar.tell() % _RECORD))
        return PartFiles(files={f"{number:05d}.tar": tar.getvalue()})


def member_key(identifier: str) -> str:
    """Return the name of a row's members: no two ids have the same, and none has a dot."""
    key = re.sub(r"[.~]", lambda sign: f"%{ord(sign[0]):02X}", quote(identifier, safe=""))
    if len(key) <= _LONGEST_KEY:
        return key
    # No short key has a tilde.
    digest = hashlib.blake2b(identifier.encode(), digest_size=16).hexdigest()
    return f"{key[:_KEPT_OF_LONG]}~{digest}"


def _octal(number: int, width: int) -> bytes:
    return b"%0*o" % (width - 1, number) + bytes(1)


_BEFORE_SIZE = _octal(0o644, 8) + _octal(0, 8) * 2  # mode, owner, group
_AFTER_SIZE = b"".join(
    (
        _octal(0, 12),  # time
        b" " * 8,  # where the checksum goes
        b"0".ljust(101, b"\0"),  # a file, and no link
        b"ustar".ljust(6, b"\0") + b"00",
        bytes(_BLOCK - 265),  # no names of owner and group, no device
    )
)
_CHECKSUM = slice(148, 155)


def _add(tar: io.BytesIO, name: str, data: bytes) -> None:
    """Write one file, of nobody's and of no time, as POSIX ustar has it."""
    header = bytearray(name.encode().ljust(100, b"\0"))
    header += _BEFORE_SIZE + _octal(len(data), 12) + _AFTER_SIZE
    header[_CHECKSUM] = _octal(sum(header), 7)
    tar.write(header)
    tar.write(data)
    tar.write(bytes(-len(data) % _BLOCK))
