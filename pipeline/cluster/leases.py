"""Taking a lease, and waiting for one whose holder may be gone."""

from __future__ import annotations

import time

from pipeline.config import RunConfig
from pipeline.report.console import Reporter
from pipeline.storage.lease import Lease, LeaseHeldError

_LOOK_EVERY_S = 5.0


def take_lease(config: RunConfig, root: str, command: str, reporter: Reporter) -> Lease:
    """Take the lease on a folder; waits up to `lease.wait_s` for one that another run holds.

    Raises:
        LeaseHeldError: when another run holds it, and still does after that.
        UnwritableError: when the folder cannot be written.
    """
    start = time.monotonic()
    said = False
    while True:
        try:
            return Lease.acquire(
                root,
                run_id=reporter.run_id,
                command=command,
                expires_after_s=config.lease.expires_after_s,
            )
        except LeaseHeldError as error:
            left = config.lease.wait_s - (time.monotonic() - start)
            if left <= 0:
                raise
            if not said:
                reporter.say(f"waiting up to {config.lease.wait_s} s for the lease: {error}")
                said = True
        time.sleep(min(_LOOK_EVERY_S, left))
