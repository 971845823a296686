"""Starting Ray, and what every flow needs set."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.data import DataContext

from pipeline.config import RunConfig

_LOCAL_ADDRESSES = frozenset({None, "local"})

# Actors, reads and writes have to fit on one CPU together, or readers starve behind idle actors.
ACTOR_CPUS = 0.75
"""CPUs of an actor beside a GPU."""
IO_CPUS = 0.25
"""CPUs of a task that reads or writes a unit for such an actor, or waits for a store."""


@contextmanager
def ray_session(config: RunConfig, *, verbose: bool = False) -> Iterator[None]:
    """Have Ray running while inside; a Ray that runs already is used and left running.

    Raises:
        ValueError: when there is no cluster at `ray.address`.
    """
    started = not ray.is_initialized()
    if started:
        local = config.ray.address in _LOCAL_ADDRESSES and "RAY_ADDRESS" not in os.environ
        options = {"include_dashboard": False} if local else {}
        if not verbose:
            # Ray's C++ core prints to the driver's stderr past every Python logger.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            address = _address(config.ray.address)
            with nullcontext() if verbose else _silenced_stderr():
                ray.init(
                    address=address,
                    log_to_driver=verbose,
                    logging_level=logging.INFO if verbose else logging.ERROR,
                    **options,
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot reach Ray at ray.address={config.ray.address}: {_first_line(error)}; "
                "start a cluster, or leave ray.address empty to use this machine"
            ) from None
    context = DataContext.get_current()
    settings = {
        "target_max_block_size": None,  # a unit stays one block from end to end
        "enable_progress_bars": verbose,
        # Machines vanish while an actor loads its model, too; what is wrong with the model itself
        # was found out before.
        "max_consecutive_actor_init_deaths": 3,
        "execution_no_progress_timeout_s": config.ray.no_progress_timeout_s,
    }
    before = {name: getattr(context, name) for name in settings}
    _assign(context, settings)
    if not verbose:
        for name in ("ray.data", "ray.train", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        _assign(context, before)
        if started:
            ray.shutdown()


def _assign(context: DataContext, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        setattr(context, name, value)


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


@dataclass(frozen=True)
class EmbedWorkers:
    """How many processes encode and correct at once, and the GPUs of each."""

    size: int
    gpus: float

    @property
    def threads(self) -> int | None:
        """Threads of torch in a worker on CPUs; None leaves torch's own choice beside a GPU."""
        return None if self.gpus else 1


def embed_workers(config: RunConfig, units: int) -> EmbedWorkers:
    """Choose the workers for a number of units from the configuration and the cluster.

    Of fixed size: open scaling has starved pools of GPU actors.

    Raises:
        ValueError: when the cluster has not the GPUs that are asked for.
    """
    resources = ray.cluster_resources()
    gpus = float(resources.get("GPU", 0) >= 1)
    if config.ray.gpus_per_actor != "auto":
        gpus = config.ray.gpus_per_actor
    if config.ray.encode_actors != "auto":
        size = config.ray.encode_actors
    elif gpus:
        size = max(1, int(resources.get("GPU", 0) // gpus))
    else:
        size = max(1, int(resources.get("CPU", 1)))
    alone = config.ray.address in _LOCAL_ADDRESSES and "RAY_ADDRESS" not in os.environ
    if gpus and alone and not resources.get("GPU"):
        # A cluster may show no GPU before the first is asked for; this machine will not grow one.
        raise ValueError(
            f"ray.gpus_per_actor is {gpus:g}, but this machine has no GPU; set it to 0 or auto"
        )
    return EmbedWorkers(min(size, max(1, units)), gpus)


def user_error(error: BaseException) -> ValueError | None:
    """Return the ValueError that a stage raised inside Ray, None when it was something else."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if type(current) is ValueError:
            return current
        pending += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        pending += getattr(current, "worker_failures", {}).values()  # Ray Train, by rank
    # Ray Data wraps what a task raised and loses the cause on the way; its text is left.
    told = _VALUE_ERROR.search(str(error))
    return ValueError(told.group(1)) if told else None


_VALUE_ERROR = re.compile(r"^ValueError: (.+)$", re.MULTILINE)


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
    try:
        _check_reachable(find_bootstrap_address(None) or "")
    except OSError:
        if wanted:
            raise
        return "local"
    return configured


def _check_reachable(address: str) -> None:
    """Raise OSError when nothing listens at host:port, where Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
