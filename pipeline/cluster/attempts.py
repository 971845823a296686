"""Attempts at units, counted where they outlive the worker that makes them.

Ray restarts an actor or a task whose process died and tries again without end, so a unit that
kills its worker would hold up a night. One small actor on the driver's node knows which units were
begun and never ended. Nothing heavy is imported here: the actor, and every task that counts, is a
process of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_VANISHED_FORGIVEN = 10
"""Attempts that ended with their machine are no fault of the unit, up to as many."""

_NAME = "anisoalign-attempts"
_held: list[Any] = []


class AttemptCounter:
    """The actor's state: for each flow, stage and unit the nodes of attempts that never ended."""

    def __init__(self) -> None:
        self._open: dict[str, dict[tuple[str, str], list[str]]] = {}

    def begin(self, flow: str, stage: str, unit_key: str, node: str) -> int:
        """Note the start of an attempt on a node; returns its number, from 1.

        Earlier attempts on machines that are gone don't count: they vanish for reasons of their
        own.
        """
        nodes = self._open.setdefault(flow, {}).setdefault((stage, unit_key), [])
        vanished = 0
        if nodes:
            alive = self._alive()
            vanished = sum(one not in alive for one in nodes)
        nodes.append(node)
        return len(nodes) - min(vanished, _VANISHED_FORGIVEN)

    def end(self, flow: str, stage: str, unit_key: str) -> None:
        """Forget the attempts at a unit: its worker outlived the last."""
        self._open.get(flow, {}).pop((stage, unit_key), None)

    def forget(self, flow: str) -> None:
        """Forget all attempts of a flow."""
        self._open.pop(flow, None)

    def _alive(self) -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@dataclass(frozen=True)
class CountedAttempts:
    """What stages get: attempts counted by the actor; see `Attempts` in stages/envelope.py."""

    counter: Any
    flow: str
    limit: int

    def begin(self, stage: str, unit_key: str) -> int:
        """Return the number of this attempt, from 1."""
        node = ray.get_runtime_context().get_node_id()
        number: int = ray.get(self.counter.begin.remote(self.flow, stage, unit_key, node))
        return number

    def end(self, stage: str, unit_key: str) -> None:
        """Say that the process outlived the attempt."""
        ray.get(self.counter.end.remote(self.flow, stage, unit_key))


@contextmanager
def counted_attempts(limit: int) -> Iterator[CountedAttempts]:
    """Have attempts counted while inside; a unit gets `limit` of them in each stage.

    The actor is the driver's, made once and kept for its later flows.
    """
    counter, flow = attempt_counter(), secrets.token_hex(8)
    try:
        yield CountedAttempts(counter, flow, limit)
    finally:
        counter.forget.remote(flow)


def attempt_counter() -> Any:
    """Return the driver's actor, which starts when it is asked for the first time."""
    try:
        return ray.get_actor(_NAME)
    except ValueError:
        pass  # the first flow of this driver
    here = ray.get_runtime_context().get_node_id()
    counter = (
        ray.remote(AttemptCounter)
        .options(
            name=_NAME,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote()
    )
    # An actor ends when nobody holds it, and what `get_actor` returns holds nothing.
    _held[:] = [counter]
    return counter
