"""How much faster two workers encode than one, of a machine and as nodes; and than a plain loop.

A run's start is left out: what is measured is the time that more captions take.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.benchmarks.bare_loop import bare_rate
from pipeline.benchmarks.commands import CommandError, run_command
from pipeline.benchmarks.machine import machine_facts
from pipeline.benchmarks.rates import Rates, step_counter

UNITS = (4, 16)
"""Units of the shorter and of the longer run."""
_STARTED_WITHIN_S = 60.0


@dataclass(frozen=True)
class ScalingReport:
    """Captions a second of two workers (ours) and of one (baseline); `loop` against a plain loop.

    `loop` is of all workers against as many processes that do nothing but encode.
    """

    model: str
    captions: int
    actors: Rates
    nodes: Rates
    loop: Rates

    def to_mapping(self) -> dict[str, Any]:
        """Return the report in the shape of every benchmark; the value is that of actors."""
        return {
            "name": "scaling",
            "unit": "captions/s",
            **self.actors.to_mapping(),
            "machine": machine_facts(),
            "model": self.model,
            "captions": self.captions,
            "parts": {
                "workers against one": self.actors.to_mapping(),
                "nodes against one": self.nodes.to_mapping(),
                "workers against a plain loop": self.loop.to_mapping(),
            },
        }


def run_scaling(
    folder: Path,
    captions: Sequence[str],
    *,
    model: str,
    pretrained: str | None,
    repeats: int,
    progress: Callable[[int, int], None] | None = None,
) -> ScalingReport:
    """Encode captions by one and by two workers, in turns.

    Raises:
        CommandError: when a run fails.
        ValueError: when the machine has one core.
    """
    cores = sorted(psutil.Process().cpu_affinity())[:2]
    if len(cores) < 2:
        raise ValueError("scaling is measured on two cores, and this process may use one")
    encoding = EncodeRuns(folder, captions, model, pretrained)
    done = step_counter(progress, 2 * repeats)
    actors, nodes, loop = [], [], []
    for _ in range(repeats):
        actors.append((encoding.rate(2), encoding.rate(1)))
        loop.append((actors[-1][0], encoding.bare_rate(2)))
        done()
        found = []
        for count in (2, 1):
            with pinned_nodes(cores[:count]) as address:
                found.append(encoding.rate(count, address))
        nodes.append((found[0], found[1]))
        done()
    return ScalingReport(model, len(captions), _rates(actors), _rates(nodes), _rates(loop))


def _rates(found: Sequence[tuple[float, float]]) -> Rates:
    ours, baseline = zip(*found, strict=True)
    return Rates(ours, baseline)


class EncodeRuns:
    """Runs of `anisoalign encode` over the first captions and over all of them."""

    def __init__(
        self, folder: Path, captions: Sequence[str], model: str, pretrained: str | None
    ) -> None:
        self._folder, self._number = folder, 0
        self._rows = len(captions) // UNITS[1]
        self._paths = []
        for units in UNITS:
            path = folder / f"captions-{units}.txt"
            lines = captions[: units * self._rows]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            self._paths.append(path)
        self._encoder: dict[str, Any] = {"model": model, "pretrained": pretrained}

    def rate(self, actors: int, address: str = "local") -> float:
        """Return captions a second of so many actors, from what the longer run takes more."""
        seconds = [self._run(path, actors, address) for path in self._paths]
        return self._rows * (UNITS[1] - UNITS[0]) / (seconds[1] - seconds[0])

    def bare_rate(self, cores: int) -> float:
        """Return captions a second of a plain loop over the same units, on so many cores."""
        return bare_rate(self._paths[0], self._rows, cores=cores, **self._encoder)

    def _run(self, captions: Path, actors: int, address: str) -> float:
        self._number += 1
        values = {
            "text": {"path": str(captions)},
            "encoder": self._encoder,
            "output": {"path": str(self._folder / f"run-{self._number}")},
            "units": {"rows_per_shard": self._rows},
            "ray": {"address": address, "encode_actors": actors},
        }
        config = self._folder / f"run-{self._number}.yaml"
        config.write_text(yaml.safe_dump(values), encoding="utf-8")
        return run_command("encode", str(config)).seconds


@contextmanager
def pinned_nodes(cores: Sequence[int]) -> Iterator[str]:
    """Keep a Ray cluster of one node for each core running; yields its address.

    Raises:
        CommandError: when it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    token = secrets.token_hex(32)
    environment = {**os.environ, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--num-cpus=1", "--disable-usage-stats", "--block"]
    nodes: list[psutil.Popen] = []
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            os.environ.update(RAY_AUTH_TOKEN=token, RAY_AUTH_MODE="token")
            for core in cores:
                place = (
                    [f"--address={address}"]
                    if nodes
                    else [
                        "--head",
                        "--node-ip-address=127.0.0.1",
                        f"--port={address.rpartition(':')[2]}",
                        "--include-dashboard=false",
                        f"--temp-dir={folder}",
                    ]
                )
                node = psutil.Popen(
                    [ray, "start", *place, *common],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
                node.cpu_affinity([core])  # what it starts stays there too
                nodes.append(node)
                _wait_for(ray, address, environment, len(nodes))
            yield address
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            for node in reversed(nodes):
                for process in (*node.children(recursive=True), node):
                    process.kill()
                node.wait()


def _wait_for(ray: str, address: str, environment: dict[str, str], nodes: int) -> None:
    """Wait until a cluster has so many nodes."""
    deadline = time.monotonic() + _STARTED_WITHIN_S
    while time.monotonic() < deadline:
        said = subprocess.run(
            [ray, "status", f"--address={address}"],
            env=environment,
            capture_output=True,
            text=True,
        )
        if said.returncode == 0 and said.stdout.count("node_") >= nodes:
            return
        time.sleep(0.5)
    raise CommandError(f"{nodes} Ray nodes did not start within {_STARTED_WITHIN_S:.0f} s")
