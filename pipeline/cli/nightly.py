"""The command that brings a dataset up to its corpus."""

from __future__ import annotations

from typing import Any

from pipeline.cli.runs import flow_command


@flow_command(lambda config: ("text",))
def nightly() -> Any:
    """Encode and correct what is new since the last version, and publish the next one."""
    from pipeline.cluster.nightly import nightly

    return nightly
