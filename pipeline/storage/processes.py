"""Which process on which machine: enough to tell later that it is gone."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_DEAD_STATES = frozenset("ZXx")


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process for as long as it lives: its number alone is given to others after its end."""

    host: str
    pid: int
    boot: str
    pid_namespace: str
    started: str

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Return this process's; what only Linux tells is empty elsewhere."""
        boot = _read("/proc/sys/kernel/random/boot_id").strip()
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=boot,
            pid_namespace=_own_namespace(),
            started=_started(os.getpid()) or "",
        )

    def surely_gone(self) -> bool:
        """Return whether it ran on this very machine and does no longer; False where unknown."""
        here = ProcessIdentity.own()
        comparable = (
            (self.host, self.boot, self.pid_namespace) == (here.host, here.boot, here.pid_namespace)
            and bool(self.boot and self.pid_namespace and self.started)
            and self.pid > 0
        )
        return comparable and _started(self.pid) != self.started


def _own_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return the start time of a living process in ticks since boot, None if there is none."""
    # The name, in parentheses, may hold anything; state and start time are fields 3 and 22.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in _DEAD_STATES:
        return None
    return fields[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
