"""What a store's error means to the user: one line of what, where and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.storage.places import reason, redact_url
from pipeline.storage.retrying import error_code, is_transient

_UNWRITABLE_NUMBERS = {
    errno.ENOSPC: "the disk is full; free space there, or choose another place",
    errno.EDQUOT: "the disk quota is used up; free space there, or choose another place",
    errno.EROFS: "the filesystem is read-only; choose a place that you may write",
}
_FORBIDDEN = "you may not write there; ask for the right to, or choose another place"
_UNWRITABLE_CODES = {
    "NoSuchBucket": "there is no such bucket; make it, or correct its name",
    "QuotaExceeded": _UNWRITABLE_NUMBERS[errno.EDQUOT],
    "XMinioStorageFull": _UNWRITABLE_NUMBERS[errno.ENOSPC],
}


class UnwritableError(ValueError):
    """A place cannot be written, now or by trying again: full, read-only, forbidden, missing."""


class StoreError(ValueError):
    """A store failed or refused, tried again or not; what it holds may be whole all the same."""


@contextmanager
def reading(url: str, verb: str = "read") -> Iterator[None]:
    """Turn any error inside into one that names the URL.

    Raises:
        FileNotFoundError: if there is no such file.
        StoreError: if the store failed, or refused it.
        ValueError: if it said what is wrong by a ValueError.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no file {redact_url(url)}") from error
    except Exception as error:  # every store raises its own kinds
        where = f"cannot {verb} {redact_url(url)}"
        if is_transient(error):
            raise StoreError(f"{where}: {_failed(error)}") from error
        kind = ValueError if isinstance(error, ValueError) else StoreError
        raise kind(f"{where}: {reason(error)}") from error


@contextmanager
def writing(url: str, verb: str = "write") -> Iterator[None]:
    """Turn any error inside into one that names the URL.

    Raises:
        UnwritableError: if the place cannot be written, now or later.
        StoreError: if the store failed.
        ValueError: for any other error.
    """
    try:
        yield
    except Exception as error:  # every store raises its own kinds
        where = f"cannot {verb} {redact_url(url)}"
        if unwritable := _unwritable(error):
            raise UnwritableError(f"{where}: {unwritable}") from error
        if is_transient(error):
            raise StoreError(f"{where}: {_failed(error)}") from error
        raise ValueError(f"{where}: {reason(error)}; choose a place that you may write") from error


def _failed(error: Exception) -> str:
    return f"the store failed, also when tried again ({reason(error)}); try again later"


def _unwritable(error: Exception) -> str | None:
    if code := _UNWRITABLE_CODES.get(error_code(error)):
        return code
    if type(error).__name__ == "NoCredentialsError":
        return "there are no credentials for it; set those of the store"
    if isinstance(error, OSError) and error.errno in _UNWRITABLE_NUMBERS:
        return _UNWRITABLE_NUMBERS[error.errno]
    return _FORBIDDEN if isinstance(error, PermissionError) else None
