"""What docs/operations.md says, exists: commands, options, keys, events, metrics, defaults."""

from __future__ import annotations

import re
import shlex
from typing import get_args

import yaml

from pipeline.config import NightlySection, RunConfig, known_keys
from tests.documents import ROOT, commands, inline, shell_lines, text_of

PAGE = "docs/operations.md"
TEXT = text_of(PAGE)
INLINE = inline(PAGE)
COMMANDS = commands(PAGE)
_FILES = (".md", ".json", ".yaml", ".py", ".parquet", ".safetensors", ".log", ".sh")


def test_the_commands_of_a_night_are_there():
    told = {" ".join(words[1:3]) for words in COMMANDS}
    for command in ("nightly CONFIG", "rollback DATASET", "gc DATASET", "verify DATASET"):
        assert command in told
    assert {"versions list", "versions show", "versions diff"} <= told


# That every command and option exists is checked of all pages: tests/test_documents.py.


def test_configuration_keys_exist():
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    others = {"datasets.load_dataset", *(f"docker.{key}" for key in cluster["docker"])}
    named = {
        text
        for text in INLINE
        if re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", text) and not text.endswith(_FILES)
    }
    assert {"nightly.on_drift", "lease.expires_after_s", "rejects.max_share"} <= named
    assert named - others <= set(known_keys())


def test_defaults_are_as_told():
    config = RunConfig()
    for key in ("max_centroid_drift", "max_covariance_drift", "max_radial_drift"):
        (told,) = re.findall(rf"^\| `nightly.{key}` \|.*\| ([\d.]+) \|$", TEXT, re.MULTILINE)
        assert float(told) == getattr(config.nightly, key)
    for choice in get_args(NightlySection.model_fields["on_drift"].annotation):
        default = " (default)" if choice == config.nightly.on_drift else ""
        assert f"\n| `{choice}`{default} | " in TEXT
    assert f"`lease.expires_after_s` ({config.lease.expires_after_s} seconds)" in TEXT
    assert f"`units.max_attempts` times ({config.units.max_attempts})" in TEXT
    minutes = config.ray.no_progress_timeout_s // 60
    assert f"`ray.no_progress_timeout_s` ({minutes} minutes)" in TEXT


def test_retries_are_as_told():
    from pipeline.storage.retrying import DEADLINE_S, TRIES

    assert f"up to {TRIES} times" in " ".join(TEXT.split())
    assert DEADLINE_S == 120
    assert "two minutes" in TEXT


def test_events_and_metrics_exist():
    from pipeline.cluster.metrics import FlowMetrics

    sources = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    (listed,) = re.findall(r"^Events: (.*?)\.$", TEXT, re.MULTILINE | re.DOTALL)
    events = re.findall(r"`(\w+)`", listed)
    assert len(events) == 16
    assert [event for event in events if f'"{event}"' not in sources] == []
    emitted = set(re.findall(r'reporter\.event\(\s*"(\w+)"', sources))
    assert emitted <= set(events)
    metrics = {f"ray_{one.info['name']}" for one in vars(FlowMetrics()).values() if _is_metric(one)}
    assert set(re.findall(r"^\| `(ray_\w+)` \|", TEXT, re.MULTILINE)) == metrics


def _is_metric(value: object) -> bool:
    return hasattr(value, "info")


def test_files_exist():
    shell = "\n".join(shell_lines(PAGE))
    words = {*shlex.split(shell, comments=True), *" ".join(INLINE).split()}
    files = {
        one for one in words if re.fullmatch(r"(configs|jobs|docs)/[\w/.]+|ray_cluster\.yaml", one)
    }
    assert {"configs/kuberay/Dockerfile", "configs/nightly.yaml", "jobs/nightly.py"} <= files
    assert [one for one in files if not (ROOT / one).exists()] == []
