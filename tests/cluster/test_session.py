"""Which Ray a run takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.cluster import ray_start, session
from pipeline.cluster.session import ray_session
from pipeline.config import parse_config


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """Return the addresses that Ray is started with, without starting it."""
    taken: list[str | None] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_start.ray, "init", lambda address, **_: taken.append(address))
    monkeypatch.setattr(ray_start.ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "warm_workers", lambda: None)
    monkeypatch.setattr(session, "attempt_counter", lambda: None)
    return taken


def remember(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    monkeypatch.setattr(ray_start, "find_bootstrap_address", lambda _: address)


def test_a_cluster_that_is_only_remembered_is_not_waited_for(
    addresses: list[str | None], monkeypatch: pytest.MonkeyPatch
):
    """Ray's file of the last cluster outlives one that was killed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        remember(monkeypatch, address)
        with ray_session(parse_config({})):
            assert addresses == [None]  # Ray finds the cluster that is there
    with ray_session(parse_config({})):
        assert addresses == [None, "local"]
    with (
        pytest.raises(ValueError, match=r"cannot reach Ray at ray.address=auto"),
        ray_session(parse_config({"ray": {"address": "auto"}})),
    ):
        pass
    remember(monkeypatch, None)
    with ray_session(parse_config({})):
        assert addresses[2:] == ["local"]


def test_a_named_cluster_has_to_be_there(
    addresses: list[str | None], monkeypatch: pytest.MonkeyPatch
):
    remember(monkeypatch, None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with ray_session(parse_config({"ray": {"address": address}})):
            assert addresses == [address]
    with (
        pytest.raises(ValueError, match=rf"cannot reach Ray at ray.address={address}"),
        ray_session(parse_config({"ray": {"address": address}})),
    ):
        pass
