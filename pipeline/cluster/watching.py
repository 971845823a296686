"""A run's processes, watched from the driver: their memory, and what others took of the machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType

import psutil
import ray

_SAMPLED_EVERY_S = 0.1
_WORKER = "ray::"
"""How the names of Ray's worker processes begin."""


class PeakMemory:
    """Watches, while inside, the driver and the workers of this machine, in a thread.

    `driver` and `worker`, the largest of them, are peaks of resident memory in bytes; `worker` is 0
    where all workers are on other machines.
    """

    def __init__(self) -> None:
        self.driver = self.worker = 0.0
        self._own = psutil.Process()
        self._raylets = _raylets(ray.get_runtime_context().gcs_address)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look for the last time."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            stopped = self._stopped.wait(_SAMPLED_EVERY_S)
            self.driver = max(self.driver, float(self._own.memory_info().rss))
            self.worker = max((self.worker, *self._workers()))
            if stopped:
                return

    def _workers(self) -> Iterator[float]:
        for raylet in self._raylets:
            try:
                below = raylet.children(recursive=True)
            except psutil.Error:
                continue
            for process in below:
                try:
                    if process.name().startswith(_WORKER):
                        yield float(process.memory_info().rss)
                except psutil.Error:
                    continue  # it has just ended


class OtherWork:
    """How busy this machine's processors are with other work, from now on."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def share(self) -> float:
        """Return the share of the processors, 0 to 1, that was not idle and not ours since."""
        every, idle, ours = (
            now - before for now, before in zip(self._seconds(), self._start, strict=True)
        )
        return min(1.0, max(0.0, (every - idle - ours) / every)) if every > 0 else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Return processor seconds of all kinds, idle ones, and those of Ray and this process."""
        times = psutil.cpu_times()
        # What runs in guests is counted among the user's seconds already.
        every = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        roots = [psutil.Process(), *_raylets(ray.get_runtime_context().gcs_address)]
        found = {process.pid: process for process in roots}
        for root in roots:
            found |= {process.pid: process for process in root.children(recursive=True)}
        ours = 0.0
        for process in found.values():
            try:
                ours += sum(process.cpu_times()[:4])  # user and system, and of children that ended
            except psutil.Error:
                continue
        return every, times.idle + getattr(times, "iowait", 0.0), ours


def _raylets(address: str) -> list[psutil.Process]:
    """Return the processes of this machine that start workers for the cluster at an address."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        said = process.info["cmdline"] or []
        if process.info["name"] == "raylet" and any(address in one for one in said):
            found.append(process)
    return found
