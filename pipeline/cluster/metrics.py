"""Events as metrics of Ray, which its agents export to Prometheus on every node."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.report.console import Reporter

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class FlowMetrics:
    """Observes a run's events; every metric has the tag `flow`, none has ids, which never end."""

    def __init__(self) -> None:
        tags = ("flow",)
        self.rows = Counter("anisoalign_rows_total", "Rows written to shards", tags)
        self.rejected = Counter(
            "anisoalign_rejected_rows_total", "Rows quarantined", ("flow", "reason")
        )
        self.units = Counter("anisoalign_units_total", "Units written", tags)
        self.reused = Counter("anisoalign_reused_units_total", "Units kept as they were", tags)
        self.failures = Counter(
            "anisoalign_unit_failures_total", "Attempts at units that failed", ("flow", "stage")
        )
        self.rate = Gauge("anisoalign_rows_per_second", "Rows a second since the flow began", tags)
        self.reject_share = Gauge(
            "anisoalign_reject_share", "Share of the rows seen that was quarantined", tags
        )
        self.seconds = Histogram(
            "anisoalign_stage_seconds",
            "Seconds a unit spent in a stage",
            _SECONDS,
            ("flow", "stage"),
        )
        self.drift = Gauge("anisoalign_drift", "Drift of the source by kind", ("kind",))
        self._began: dict[str, float] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._kept: dict[str, int] = {}

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take over what an event says."""
        if event == "planned":
            self._planned(fields)
        elif event == "unit_written":
            self._written(fields)
        elif event in ("unit_retried", "unit_failed"):
            self.failures.inc(
                fields["added_attempts"], {"flow": fields["name"], "stage": fields["stage"]}
            )
        elif event == "dataset_committed":
            rows = fields["rows"] + fields["rejected"]
            share = fields["rejected"] / rows if rows else 0.0
            self.reject_share.set(share, {"flow": fields["name"]})
        elif event == "drift":
            for kind, value in fields.items():
                if kind.endswith("_rows"):
                    continue  # how many rows were compared is no drift
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self.drift.set(value, {"kind": kind})

    def _planned(self, fields: Mapping[str, Any]) -> None:
        flow = fields["name"]
        self._began[flow] = time.monotonic()
        self._seen[flow] = fields["reused_rows"], fields["reused_rejected"]
        self._kept[flow] = fields["reused_rows"]
        if fields["reused"]:
            self.reused.inc(fields["reused"], {"flow": flow})

    def _written(self, fields: Mapping[str, Any]) -> None:
        flow = fields["name"]
        tags = {"flow": flow}
        self.units.inc(1, tags)
        if fields["rows"]:  # a counter takes no zero
            self.rows.inc(fields["rows"], tags)
        for reason, count in fields["rejected"].items():
            self.rejected.inc(count, {**tags, "reason": reason})
        for stage, seconds in fields["seconds"].items():
            self.seconds.observe(seconds, {**tags, "stage": stage})
        rows, rejected = self._seen.get(flow, (0, 0))
        rows += fields["rows"]
        rejected += sum(fields["rejected"].values())
        self._seen[flow] = rows, rejected
        self.reject_share.set(rejected / max(rows + rejected, 1), tags)
        began = self._began.get(flow)
        if began is not None:
            written = rows - self._kept[flow]
            self.rate.set(written / max(time.monotonic() - began, 1e-3), tags)


@contextmanager
def exported_metrics(reporter: Reporter) -> Iterator[FlowMetrics]:
    """Export a reporter's events as metrics while inside."""
    metrics = FlowMetrics()
    with reporter.observed_by(metrics):
        yield metrics
