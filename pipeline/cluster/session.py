"""Starting Ray, and what every flow needs set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pipeline.cluster.attempts import attempt_counter
from pipeline.cluster.encoder_description import begin_description
from pipeline.cluster.ray_start import start_ray, starts_here, warm_workers
from pipeline.cluster.resources import asked_gpus
from pipeline.config import RunConfig

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
    try:
        fresh = started and start_ray(config, verbose=verbose)
        if not begin_description(config) and fresh:
            warm_workers()
        if started:
            attempt_counter()  # a process of its own, which the first unit would have to wait for
        # Here, not above: it takes half a second to import, which Ray's workers can use.
        from pipeline.cluster.ray_data import ray_data_set_up

        with ray_data_set_up(config, here=fresh, verbose=verbose):
            yield
    finally:
        if started:
            ray.shutdown()


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
    gpus, key = asked_gpus(config)
    if gpus is None:
        gpus = float(resources.get("GPU", 0) >= 1)
    if config.ray.encode_actors != "auto":
        size = config.ray.encode_actors
    elif gpus:
        size = max(1, int(resources.get("GPU", 0) // gpus))
    else:
        size = max(1, int(resources.get("CPU", 1)))
    if gpus and starts_here(config.ray.address) and not resources.get("GPU"):
        # A cluster may show no GPU before the first is asked for; this machine will not grow one.
        raise ValueError(f"{key}, but this machine has no GPU; set it to auto")
    return EmbedWorkers(min(size, max(1, units)), gpus)
