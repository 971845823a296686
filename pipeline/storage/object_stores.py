"""Object stores: where they differ from filesystems; S3 by its own calls, others by fsspec's."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pipeline.storage.retrying import error_code, retried

_READ_AHEAD_BYTES = 4 << 20
_DELETED_AT_ONCE = 1000
_IDENTITIES = ("ETag", "etag", "generation", "md5Hash", "md5")


class RangeFile(io.RawIOBase):
    """A seekable file whose every read is a request of its own for one range of bytes.

    `read_range(start, stop)` must return all of the range or raise; so a connection that breaks
    between two reads, or in one, is tried again there.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read_range = read_range
        self.size = size
        self._position = 0
        self._kept = b""
        self._kept_from = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, all that are left by default."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._fetched(wanted)[:wanted]
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Return all bytes that are left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return how many bytes it got."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def peek(self, size: int = 0) -> bytes:
        """Return some of the next bytes without moving on; it is what makes `readline` fast."""
        return self._fetched(min(max(size, 1), max(0, self.size - self._position)))

    def _fetched(self, wanted: int) -> bytes:
        """Return at least `wanted` bytes from the position on."""
        start, stop = self._position, self._position + wanted
        if wanted and not self._kept_from <= start <= stop <= self._kept_from + len(self._kept):
            ahead = min(self.size, max(stop, start + _READ_AHEAD_BYTES))
            self._kept, self._kept_from = self._read_range(start, ahead), start
        return self._kept[start - self._kept_from :] if wanted else b""


def is_s3(filesystem: Any) -> bool:
    """Return whether a filesystem is s3fs's."""
    protocol = filesystem.protocol
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol)


def entry_identity(entry: Mapping[str, Any]) -> str | None:
    """Return what changes when a listed object does, None where the store says nothing."""
    for name in _IDENTITIES:
        if entry.get(name):
            return f"{str(entry[name]).strip(chr(34))}-{entry.get('size')}"
    return None


def delete_objects(filesystem: Any, paths: Sequence[str]) -> None:
    """Delete many objects of one S3 store, a thousand in a request; missing ones are no error.

    Raises:
        OSError: if the store refuses one.
    """
    keys: dict[str, list[str]] = {}
    for path in paths:
        bucket, key, _ = filesystem.split_path(path)
        keys.setdefault(bucket, []).append(key)
    for bucket, found in keys.items():
        for start in range(0, len(found), _DELETED_AT_ONCE):
            batch = found[start : start + _DELETED_AT_ONCE]
            request = {"Objects": [{"Key": key} for key in batch], "Quiet": True}
            retried(partial(_delete, filesystem, bucket, request))
    filesystem.invalidate_cache()


def _delete(filesystem: Any, bucket: str, request: Mapping[str, Any]) -> None:
    answer = filesystem.call_s3("delete_objects", Bucket=bucket, Delete=request)
    for failed in answer.get("Errors", []):
        code, key = failed.get("Code"), failed.get("Key")
        if code in {"InternalError", "SlowDown", "ServiceUnavailable"}:
            raise ConnectionError(f"{code} at {key}")
        raise PermissionError(f"{code} at {key}")


def abort_uploads(filesystem: Any, path: str, older_than_s: float) -> int:
    """Abort the multipart uploads below an S3 prefix that were begun long ago; return how many."""
    bucket, key, _ = filesystem.split_path(path)
    prefix = key.rstrip("/") + "/" if key else ""
    latest = datetime.now(UTC) - timedelta(seconds=older_than_s)
    aborted = 0
    page: dict[str, Any] = {"IsTruncated": True}
    markers: dict[str, str] = {}
    while page.get("IsTruncated"):
        request = {"Bucket": bucket, "Prefix": prefix, **markers}
        try:
            page = retried(partial(filesystem.call_s3, "list_multipart_uploads", **request))
        except Exception as error:
            if error_code(error) == "NotImplemented":  # a small server, which keeps no uploads
                return aborted
            raise
        for upload in page.get("Uploads") or []:
            if upload["Key"].startswith(prefix) and upload["Initiated"] <= latest:
                aborted += retried(partial(_abort, filesystem, bucket, upload))
        markers = {
            "KeyMarker": str(page.get("NextKeyMarker") or ""),
            "UploadIdMarker": str(page.get("NextUploadIdMarker") or ""),
        }
    return aborted


def _abort(filesystem: Any, bucket: str, upload: Mapping[str, Any]) -> bool:
    try:
        filesystem.call_s3(
            "abort_multipart_upload",
            Bucket=bucket,
            Key=upload["Key"],
            UploadId=upload["UploadId"],
        )
    except FileNotFoundError:  # finished or aborted meanwhile
        return False
    return True
