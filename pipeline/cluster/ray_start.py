"""Starting Ray: quickly, quietly, and with workers that have their imports done."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

import ray
from ray._private.services import find_bootstrap_address

from pipeline.config import RunConfig

_LOCAL = "local"
_LOCAL_ADDRESSES = frozenset({None, _LOCAL})
_STAGES = "pipeline.cluster.workers"
"""What every worker needs, and takes more than a second to import."""

_REUSED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MIMALLOC_PURGE_DELAY": "-1",
}
"""For workers: what a unit's arrays took serves the next unit's. Given back and taken anew, page by
page, it costs as much time as reading the unit does."""


def starts_here(address: str | None) -> bool:
    """Return whether `ray.address` means a Ray of this machine alone."""
    return address in _LOCAL_ADDRESSES and "RAY_ADDRESS" not in os.environ


def start_ray(config: RunConfig, *, verbose: bool) -> bool:
    """Start Ray on this machine, or connect to a cluster; returns whether it was started.

    Raises:
        ValueError: when there is no cluster at `ray.address`.
    """
    if not verbose:
        # Ray's C++ core prints to the driver's stderr past every Python logger.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        address = _address(config.ray.address)
        here = address == _LOCAL
        for name, value in _REUSED_MEMORY.items() if here else ():
            os.environ.setdefault(name, value)
        with nullcontext() if verbose else _silenced_stderr():
            ray.init(
                address=address,
                log_to_driver=verbose,
                logging_level=logging.INFO if verbose else logging.ERROR,
                **({"include_dashboard": False} if here else {}),
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot reach Ray at ray.address={config.ray.address}: {_first_line(error)}; "
            "start a cluster, or leave ray.address empty to use this machine"
        ) from None
    return here


def warm_workers() -> None:
    """Have every worker of a Ray just started import what stages need, while the driver does."""
    task = ray.remote(num_cpus=1)(_import_stages)
    for _ in range(int(ray.cluster_resources().get("CPU", 1))):
        task.remote()


def _import_stages() -> None:
    import_module(_STAGES)


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2: Ray's core greets there; failures still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _address(configured: str | None) -> str | None:
    """Return the address for Ray to use.

    Ray remembers the last cluster of a machine in a file, and would wait for minutes for one that
    was killed: where any cluster will do, a new one is started then.

    Raises:
        OSError: when nothing listens at the address.
    """
    wanted = configured or os.environ.get("RAY_ADDRESS")
    if wanted and wanted != "auto":
        _check_reachable(wanted)
        return configured
    remembered = find_bootstrap_address(None)
    try:
        _check_reachable(remembered or "")
    except OSError:
        if wanted:
            raise
        return _LOCAL
    return configured if remembered or wanted else _LOCAL


def _check_reachable(address: str) -> None:
    """Raise OSError when nothing listens at host:port, where Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
