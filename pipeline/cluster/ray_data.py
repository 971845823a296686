"""Ray Data's settings while flows run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import streaming_executor_state

from pipeline.config import RunConfig

_LOOK_EVERY_S = 0.01
"""Ray Data looks for finished tasks as often on a machine of its own: 0.1 s, twice for each task,
leaves a few workers idle a third of the time that correcting a unit takes; thousands of tasks are
never all waited for. There is no public setting for it."""


@contextmanager
def ray_data_set_up(config: RunConfig, *, here: bool, verbose: bool) -> Iterator[None]:
    """Have Ray Data work the way that flows need while inside; its settings come back after.

    `here` says that Ray is this machine's alone.
    """
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
    looks_every_s = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
    if here:
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = _LOOK_EVERY_S
    if not verbose:
        for name in ("ray.data", "ray.train", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        _assign(context, before)
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = looks_every_s


def _assign(context: DataContext, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        setattr(context, name, value)
