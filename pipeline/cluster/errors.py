"""What went wrong inside Ray, as the user's error that it was."""

from __future__ import annotations

import re


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
