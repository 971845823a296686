"""The life of a run: its id, its lease, its Ray, its events, its summary, however it ends."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipeline.cluster.leases import take_lease
from pipeline.cluster.metrics import exported_metrics
from pipeline.cluster.outputs import output
from pipeline.cluster.resources import check_resources
from pipeline.cluster.session import ray_session
from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.stages.envelope import reason_of
from pipeline.storage import locations
from pipeline.storage.lease import Lease, LeaseLostError

Flow = Callable[[RunConfig, Reporter], dict[str, Any]]

RUN_FIELDS = ("run_id", "command", "status", "error", "started", "seconds")
"""What a summary says of the run itself, beside what its flow returned."""


def new_run_id() -> str:
    """Return an id that sorts by time and that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def run_flow(
    config: RunConfig, command: str, flow: Flow, reporter: Reporter, *, verbose: bool = False
) -> dict[str, Any]:
    """Run a flow on Ray as the only run in its output folder; returns what summary.json holds.

    The summary (run_id, command, status, error, started, seconds and the flow's own) is written
    whether the flow ends well or not.

    Raises:
        LeaseHeldError: when another run works in the same output, for longer than `lease.wait_s`.
        LeaseLostError: when another may have come to work there meanwhile.
        ValueError: when the output cannot be written, there is no cluster, or it can never have
            what the configuration asks for; and whatever the flow raises.
    """
    root = output(config)
    reporter.run_id = new_run_id()
    locations.check_writable(root)
    with take_lease(config, root, command, reporter) as lease:
        run = _Run(root, command, reporter, lease)
        try:
            with ray_session(config, verbose=verbose), exported_metrics(reporter):
                reporter.event("flow_started", command=command, output=locations.redact_url(root))
                check_resources(config, command, reporter)
                summary = run.summed_up("done", flow(config, reporter))
            run.write(summary)
        except BaseException as error:
            run.fail(error)
            raise
        reporter.event("run_ended", status="done", seconds=summary["seconds"])
    return summary


class _Run:
    def __init__(self, root: str, command: str, reporter: Reporter, lease: Lease) -> None:
        self._root, self._command = root, command
        self._reporter, self._lease = reporter, lease
        self._started = datetime.now(UTC)
        self._start = time.perf_counter()

    def summed_up(
        self, status: str, result: dict[str, Any] | None = None, error: str | None = None
    ) -> dict[str, Any]:
        return {
            **(result or {}),
            "run_id": self._reporter.run_id,
            "command": self._command,
            "status": status,
            "error": error,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - self._start,
        }

    def write(self, summary: dict[str, Any]) -> None:
        """Write summary.json, unless the folder has become another run's."""
        try:
            self._lease.check()
        except LeaseLostError as error:
            raise LeaseLostError(
                f"this run lost its lease on {locations.redact_url(self._root)} and another may "
                "work there now: what it had published stands, its summary.json is not written; "
                "see `anisoalign versions list`, and start it again if its version is not there"
            ) from error
        data = json.dumps(summary, indent=1, allow_nan=False).encode()
        locations.write_bytes(locations.join(self._root, "summary.json"), data)

    def fail(self, error: BaseException) -> None:
        """Say that the run failed, as far as that is still possible; the error is on its way."""
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = "interrupted" if interrupted else reason_of(error)
        summary = self.summed_up("failed", error=reason)
        self._reporter.event(
            "run_ended", level="error", status="failed", error=reason, seconds=summary["seconds"]
        )
        try:
            self.write(summary)
        except Exception:
            self._reporter.say("summary.json could not be written")
