"""What a configuration asks of the cluster, against what the cluster has or may grow to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from pipeline.config import RunConfig
from pipeline.report.console import Reporter

_STATUS = "__autoscaling_status"
_STATIC_NODE_TYPE = "node_"
"""Where nothing scales, Ray's monitor names the type of each node by the node's own id."""


@dataclass(frozen=True)
class Demand:
    """An amount of a resource that has to be there at once, and the keys that ask for it."""

    resource: str
    amount: float
    keys: str


@dataclass(frozen=True)
class Supply:
    """What a cluster has, whether it grows by itself, and to what if that is known."""

    now: Mapping[str, float]
    grows: bool = False
    most: Mapping[str, float] | None = None


def asked_gpus(config: RunConfig) -> tuple[float | None, str]:
    """Return the GPUs of an actor that encodes, and the key that says so; None takes what is there.

    The encoder on the CPU leaves the GPUs to others, also where embeddings are corrected alone.
    """
    gpus, device = config.ray.gpus_per_actor, config.encoder.device
    if gpus != "auto":
        return gpus, f"ray.gpus_per_actor {gpus:g}"
    if device == "auto":
        return None, ""
    return float(device != "cpu"), f"encoder.device {device}"


def demands(config: RunConfig, command: str) -> list[Demand]:
    """Return what the configuration asks for in so many words; `auto` takes what is there."""
    found = []
    section, train = config.ray, config.train
    gpus, keys = asked_gpus(config)
    if gpus:
        actors = 1 if section.encode_actors == "auto" else section.encode_actors
        if section.encode_actors != "auto":
            keys = f"ray.encode_actors {actors} x {keys}"
        found.append(Demand("GPU", actors * gpus, keys))
    if command == DOWNSTREAM:
        gpus = config.downstream.gpus_per_trial
        return [Demand("GPU", gpus, f"downstream.gpus_per_trial {gpus:g}")] if gpus else []
    if train.workers and command not in _WITHOUT_TRAINING:
        workers = f"train.workers {train.workers}"
        amount = train.workers * train.cpus_per_worker
        found.append(
            Demand("CPU", amount, f"{workers} x train.cpus_per_worker {train.cpus_per_worker:g}")
        )
        if train.use_gpu:
            found.append(Demand("GPU", train.workers, f"{workers}, train.use_gpu true"))
    return found


DOWNSTREAM = "evaluate downstream"
"""The command whose trials need what their own section says."""
_WITHOUT_TRAINING = frozenset({"encode", "synthesize"})


def unmet(wanted: Sequence[Demand], supply: Supply) -> tuple[str | None, list[str]]:
    """Return why the demands can never be met (None if they can), and what has to be waited for.

    Where a cluster grows and its limits are not known, everything may come.
    """
    waited = []
    for demand in wanted:
        has = supply.now.get(demand.resource, 0.0)
        if demand.amount <= has:
            continue
        asked = f"the configuration asks for {demand.amount:g} {demand.resource}s ({demand.keys})"
        if not supply.grows:
            return (
                f"{asked}, the cluster has {has:g}: lower these keys or set them to their "
                "defaults, or add nodes before the run starts"
            ), []
        if supply.most is not None and demand.amount > max(
            has, supply.most.get(demand.resource, 0)
        ):
            most = max(has, supply.most.get(demand.resource, 0))
            return (
                f"{asked}, the cluster has {has:g} and its autoscaler adds nodes up to {most:g}: "
                "lower these keys, or raise the cluster's max_workers"
            ), []
        waited.append(f"{asked}, the cluster has {has:g}: waiting for its autoscaler to add nodes")
    return None, waited


def cluster_supply() -> Supply:
    """Return what the running cluster has and may grow to, as far as Ray says."""
    now = ray.cluster_resources()
    limits = state.get_max_resources_from_cluster_config()
    if limits is not None:
        return Supply(now, grows=True, most=limits)
    return Supply(now, grows=is_autoscaler_v2(fetch_from_server=True) or _scales_by_status())


def _scales_by_status() -> bool:
    """Return whether the first autoscaler is at work: it names nodes by the types it launches."""
    try:
        status = json.loads(_internal_kv_get(_STATUS) or b"{}")
        types = status.get("autoscaler_report", {}).get("node_type_mapping", {}) or {}
    except (ValueError, AttributeError):
        return False
    return any(not name.startswith(_STATIC_NODE_TYPE) for name in types.values())


def check_resources(config: RunConfig, command: str, reporter: Reporter) -> None:
    """Compare what the configuration asks for with the running cluster, before any work.

    Raises:
        ValueError: when it can never be met; the flow would hang until it timed out.
    """
    wanted = demands(config, command)
    if not wanted:
        return
    refusal, waited = unmet(wanted, cluster_supply())
    if refusal is not None:
        raise ValueError(refusal)
    for message in waited:
        reporter.event("waiting_for_resources", level="warning", message=message)
        reporter.say(message)
