"""A real S3 server on loopback for the tests, behind a proxy that makes requests fail.

The server is moto's, in a process of its own. Between it and the tests stands `FaultProxy`: each
request that it draws (seeded) is answered 503 SlowDown, or its connection is reset before or after
the server saw it, or its answer comes later than the client waits, or its body stops halfway.

Everything a program needs is in `ObjectStore.environment`: a process that is started with these
variables (`subprocess.run(..., env={**os.environ, **store.environment})`) finds the store by
`s3://bucket/...` alone, and so do the Ray workers that it starts. The workers of a Ray that was
started earlier (the fixture `local_ray`) don't. So a test of flows on the object store runs the
command in a process of its own, or calls `ray.init(runtime_env=store.runtime_env)` in one.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "anisoalign-tests"
SHARE = 0.05
FAULTS = ("slow down", "reset before", "reset after", "stall", "truncate")
CLIENT_TIMEOUT_S = 2
_STALL_S = 3.0
_OWN_HEADERS = frozenset({"connection", "expect", "keep-alive", "transfer-encoding"})
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code><Message>Please reduce '
    b"your request rate.</Message><RequestId>0</RequestId><HostId>0</HostId></Error>"
)


@dataclass
class _Planned:
    """A fault that the next matching requests get, whatever is drawn."""

    fault: str
    times: int
    method: str | None
    containing: str


@dataclass
class FaultProxy:
    """What goes wrong between client and server, and how often it did.

    `share` of the requests fail, each with one of `faults`. The draw depends on the seed, the
    request and how often it was made, so that threads don't change it.
    """

    upstream: tuple[str, int]
    seed: int = 0
    share: float = SHARE
    faults: Sequence[str] = FAULTS
    injected: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    _planned: list[_Planned] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    conditional: threading.Lock = field(default_factory=threading.Lock)

    def fail_next(
        self, fault: str, times: int = 1, *, method: str | None = None, containing: str = ""
    ) -> None:
        """Give a fault (of FAULTS, or a status such as "403 AccessDenied") to the next requests."""
        with self._lock:
            self._planned.append(_Planned(fault, times, method, containing))

    def reset(self) -> None:
        """Go back to the default share and forget what is planned and counted."""
        with self._lock:
            self.share, self.faults = SHARE, FAULTS
            self._planned.clear()
            self.injected.clear()
            self.requests.clear()

    def draw(self, method: str, path: str) -> str | None:
        """Return the fault of this request, None for none."""
        with self._lock:
            self.requests[method] += 1
            request = f"{method} {path}"
            self._seen[request] += 1
            fault = None
            for planned in self._planned:
                if planned.method in {None, method} and planned.containing in path:
                    fault = planned.fault
                    planned.times -= 1
                    break
            self._planned = [planned for planned in self._planned if planned.times > 0]
            if fault is None:
                drawn = random.Random(f"{self.seed} {self._seen[request]} {request}")
                fault = drawn.choice(self.faults) if drawn.random() < self.share else None
            if fault:
                self.injected[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        fault = self.proxy.draw(self.command, self.path)
        body = self._read_body()
        if fault == "reset before":
            return self._drop()
        if fault == "slow down":
            return self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
        if fault and fault[:3].isdigit():
            number, code = fault.split(" ")
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            return self._answer(int(number), {"Content-Type": "application/xml"}, text.encode())
        status, headers, answer = self._forward(body)
        if fault == "reset after" or (fault == "truncate" and self._halfless(answer)):
            return self._drop()
        if fault == "stall":
            time.sleep(_STALL_S)
            return self._drop()
        half = len(answer) // 2 if fault == "truncate" else None
        return self._answer(status, headers, answer, half)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 (named by the base class)

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS
        }
        headers["Content-Length"] = str(len(body))
        connection = HTTPConnection(*self.proxy.upstream, timeout=60)
        # moto checks If-None-Match and then writes, in two steps; a store does it in one.
        conditional = "If-None-Match" in self.headers
        if conditional:
            self.proxy.conditional.acquire()
        try:
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
            if conditional:
                self.proxy.conditional.release()
        kept = {
            name: value
            for name, value in response.getheaders()
            if name.lower() not in _OWN_HEADERS and name.lower() not in {"date", "server"}
        }
        return response.status, kept, answer

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, stop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        if status not in {204, 304}:
            self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def _halfless(self, answer: bytes) -> bool:
        """Return whether an answer has no body that could stop halfway."""
        return self.command == "HEAD" or len(answer) < 2

    def _drop(self) -> None:
        """Reset the connection: the client reads neither an answer nor an orderly end."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """Close at once; an orderly end of ours would come before the reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that gave up are what the proxy is for."""
        if not isinstance(sys.exc_info()[1], (OSError, HTTPException)):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class ObjectStore:
    """A running store: where it is, its one bucket, and the proxy in front of it."""

    endpoint: str
    bucket: str
    proxy: FaultProxy
    upstream: str

    @property
    def filesystem_options(self) -> dict[str, Any]:
        """What fsspec's own configuration holds: short timeouts, no retries of botocore's own."""
        timeouts = {"read_timeout": CLIENT_TIMEOUT_S, "connect_timeout": CLIENT_TIMEOUT_S}
        return {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1}}}

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which any process uses this store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key-of-nobody",
            "AWS_SECRET_ACCESS_KEY": "test-secret-of-nobody",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "FSSPEC_S3": json.dumps(self.filesystem_options),
        }

    @property
    def runtime_env(self) -> dict[str, dict[str, str]]:
        """The same for `ray.init(runtime_env=...)`."""
        return {"env_vars": self.environment}

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process and those it starts use the store, until the patch is undone."""
        import fsspec.config

        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in self.environment.items():
            patch.setenv(name, value)
        # fsspec reads its variables when it is imported, which has happened long ago.
        patch.setitem(fsspec.config.conf, "s3", self.filesystem_options)


@contextmanager
def running_object_store(seed: int = 0) -> Iterator[ObjectStore]:
    """Start the server and its proxy, make the bucket, and stop both at the end."""
    with tempfile.TemporaryFile() as log:
        process, port = _started_server(log)
        try:
            proxy = FaultProxy(("127.0.0.1", port), seed)
            _make_bucket(port)
            handler = type("Handler", (_Handler,), {"proxy": proxy})
            server = _Server(("127.0.0.1", 0), handler)
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield ObjectStore(
                    f"http://127.0.0.1:{server.server_address[1]}",
                    BUCKET,
                    proxy,
                    f"http://127.0.0.1:{port}",
                )
            finally:
                server.shutdown()
                server.server_close()
        finally:
            process.terminate()
            process.wait(10)


def forget_connections() -> None:
    """Drop the filesystems that fsspec keeps: they hold the endpoint that they were made with."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def _started_server(log: Any, tries: int = 3) -> tuple[subprocess.Popen[bytes], int]:
    for _ in range(tries):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return process, port
            except OSError:
                time.sleep(0.05)
        process.kill()
        process.wait(10)
    log.seek(0)
    raise RuntimeError(f"moto's server did not start: {log.read()[-2000:]!r}")


def _make_bucket(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    authorization = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"
    connection.request("PUT", f"/{BUCKET}", headers={"Authorization": authorization})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    connection.close()
