"""Runs that lose an actor or a node half-way, in a process of their own: one Ray a process.

python -m tests.cluster.trials actor|node FOLDER TEXT ALIGNER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from pipeline.cluster.session import ray_session
from pipeline.cluster.synthesize import synthesize
from pipeline.config import parse_config
from pipeline.report.console import Reporter

_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
_UNITS_BEFORE = 4
_NOTICED_WITHIN_S = 60.0


class Interrupted(Reporter):
    """Calls a function once so many units are written, and counts the units written."""

    def __init__(self, interruption: Callable[[], None]) -> None:
        super().__init__(quiet=True)
        self._interruption = interruption
        self.written: list[str] = []

    def event(self, name: str, /, **fields: Any) -> None:
        super().event(name, **fields)
        if name == "unit_written":
            self.written.append(fields["unit"])
            if len(self.written) == _UNITS_BEFORE:
                self._interruption()


def actor_processes() -> list[int]:
    """Return the processes of this machine that hold an actor which encodes."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"Embed" in title:
                found.append(int(folder.name))
    return found


def main(kind: str, folder: str, text: str, aligner: str) -> None:
    config = parse_config(
        {
            "text": {"path": text},
            "aligner": {"path": aligner},
            "output": {"path": f"{folder}/run"},
            "units": {"rows_per_shard": 15},
            "ray": {"encode_actors": 2},
        }
    )
    what: list[Any] = []
    if kind == "node":
        cluster = Cluster(
            initialize_head=True, head_node_args={**_NODE, "include_dashboard": False}
        )
        # Before the others are there: the driver belongs to the node that stays.
        ray.init(address=cluster.address, log_to_driver=False)
        victims = [cluster.add_node(**_NODE) for _ in range(2)]
        cluster.wait_for_nodes()

        def interruption() -> None:
            cluster.remove_node(victims[0], allow_graceful=False)
            cluster.add_node(**_NODE)
            what.append(1)
    else:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)

        def interruption() -> None:
            pids = actor_processes()
            for pid in pids[:1]:
                os.kill(pid, signal.SIGKILL)
            what.append(len(pids))

    reporter = Interrupted(interruption)
    with ray_session(config):
        report = synthesize(config, reporter)
    if kind == "node":
        # The run may end before Ray's health checks have missed the node often enough.
        give_up = time.monotonic() + _NOTICED_WITHIN_S
        while all(node["Alive"] for node in ray.nodes()) and time.monotonic() < give_up:
            time.sleep(0.2)
    nodes = [node["Alive"] for node in ray.nodes()]
    print(
        json.dumps(
            {"path": report.path, "interrupted": what, "written": reporter.written, "nodes": nodes}
        )
    )
    # The driver first: one whose node is taken from under it at exit ends with an error.
    ray.shutdown()
    if kind == "node":
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
