"""The command line in a process of its own, as a user starts it: seconds and memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil

_SAMPLED_EVERY_S = 0.2


class CommandError(RuntimeError):
    """A command that is measured failed."""


@dataclass(frozen=True)
class CommandRun:
    """Wall-clock seconds of a command, Python's start included, and its tree's peak.

    `peak_mb` is proportional memory (a page shared by n processes counts 1/n in each), 0 where it
    was not watched.
    """

    seconds: float
    peak_mb: float


def run_command(*arguments: str, watch_memory: bool = False) -> CommandRun:
    """Run `anisoalign ARGUMENTS` quietly.

    Raises:
        CommandError: when it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments, "-q"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    watcher = TreeMemory(process.pid) if watch_memory else None
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    peak = watcher.stop() if watcher is not None else 0.0
    if process.returncode != 0:
        raise CommandError(f"{arguments[0]} failed: {errors[-2000:]}")
    return CommandRun(seconds, peak)


class TreeMemory:
    """Watches the proportional memory of a process and all below it, in a thread."""

    def __init__(self, pid: int) -> None:
        self._root, self._peak = psutil.Process(pid), 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> float:
        """Return the most that was seen, in MB."""
        self._stopped.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLED_EVERY_S):
            self._peak = max(self._peak, self._now())

    def _now(self) -> float:
        total = 0
        try:
            for process in (self._root, *self._root.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has just ended
        except psutil.Error:
            return 0.0
        return float(total) / 2**20
