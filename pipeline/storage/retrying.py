"""Trying again: what a store fails at now and would do a moment later."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.client import IncompleteRead
from typing import TypeVar

_Result = TypeVar("_Result")

TRIES = 14
DEADLINE_S = 120.0
_FIRST_WAIT_S = 0.1
_GROWTH = 2.5
_LONGEST_WAIT_S = 16.0
"""Together the waits fill the deadline, whatever is drawn; none is long beside a lease's span."""

_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_CODES = frozenset(
    {
        "ConditionalRequestConflict",  # two conditional puts at once
        "InternalError",
        "NoSuchUpload",  # of a multipart put whose first answer was lost: begin it again
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_ERROR_NUMBERS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
        getattr(errno, "EREMOTEIO", errno.EIO),
    }
)
# By name, since storage knows no client library: botocore's, aiohttp's, urllib3's and requests'.
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "requests", "urllib3"})
_CONNECTION_ERRORS = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ProtocolError",
        "ResponseParserError",
        "ResponseStreamingError",
        "ServerDisconnectedError",
        "Timeout",
    }
)
_LASTING = frozenset({"ClientSSLError", "InvalidProxiesConfigError", "SSLError"})


class TruncatedError(OSError):
    """A store gave fewer bytes than it holds."""


def retried(operation: Callable[[], _Result]) -> _Result:
    """Return what `operation` returns, trying it again while it fails for a reason that passes.

    At most 14 times and for two minutes, with growing waits that fill them; its last error is
    raised. The operation must be one that may be done twice.
    """
    deadline = time.monotonic() + DEADLINE_S
    waits = _waits()
    while True:
        try:
            return operation()
        except Exception as error:
            wait, left = next(waits, None), deadline - time.monotonic()
            if wait is None or left <= 0 or not is_transient(error):
                raise
        time.sleep(min(wait, left))


def is_transient(error: BaseException) -> bool:
    """Return whether an error is throttling, a failing server, a lost connection, a cut answer."""
    chain = list(_chain(error))
    for one in chain:  # a store's own answer decides, however it is wrapped
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = response.get("Error", {}).get("Code")
            return status in _STATUSES or code in _CODES
    return any(_passes(one) for one in chain)


def error_code(error: BaseException) -> str:
    """Return the code that an S3 store answered, "" for any other error."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code") or "")
    return ""


def _passes(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _LASTING:
        return False
    if isinstance(error, (ConnectionError, TimeoutError, IncompleteRead, TruncatedError)):
        return True
    if isinstance(error, OSError) and error.errno in _ERROR_NUMBERS:
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and status in _STATUSES:
        return True
    return any(
        kind.__name__ in _CONNECTION_ERRORS and kind.__module__.split(".")[0] in _CLIENTS
        for kind in type(error).__mro__
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _waits() -> Iterator[float]:
    # Processes must not try again all at once, so their draws differ; no result depends on them.
    draw = random.Random(f"{os.getpid()} {threading.get_ident()} {time.monotonic_ns()}")
    for attempt in range(TRIES - 1):
        wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * _GROWTH**attempt)
        yield wait * draw.uniform(0.8, 1.0)
