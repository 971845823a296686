"""What docs/operations.md says, exists: commands, options, keys, events, metrics, defaults."""

from __future__ import annotations

import re
import shlex
from typing import Any, get_args

import click
import pytest
import yaml

from pipeline.cli import cli
from pipeline.config import NightlySection, RunConfig, known_keys
from tests.readme import ROOT

TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
_SHELL = "".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
_PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
INLINE = [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", _PROSE)]
COMMANDS = [
    shlex.split(line, comments=True)
    for line in dict.fromkeys(one.split("2>>")[0] for one in [*_SHELL.splitlines(), *INLINE])
    if line.startswith("anisoalign ")
]
_FILES = (".md", ".json", ".yaml", ".py", ".parquet", ".safetensors", ".log", ".sh")


def problem(words: list[str]) -> str | None:
    """Return what is wrong with an `anisoalign` command line, None if nothing is."""
    node: Any = cli
    rest = words[1:]
    while isinstance(node, click.Group):
        if not rest or rest[0] not in node.commands:
            return f"{' '.join(rest[:1])} is no command of {node.name}"
        node, rest = node.commands[rest[0]], rest[1:]
    options = {
        name: one
        for one in node.params
        if isinstance(one, click.Option)
        for name in (*one.opts, *one.secondary_opts)
    }
    given = 0
    while rest:
        word, rest = rest[0], rest[1:]
        if not word.startswith("-"):
            given += 1
        elif word not in options:
            return f"{word} is no option of {node.name}"
        elif not options[word].is_flag:
            if not rest:
                return f"{word} needs a value"
            if word == "--set" and rest[0].partition("=")[0] not in known_keys():
                return f"{rest[0]}: no such key"
            rest = rest[1:]
    arguments = [one for one in node.params if isinstance(one, click.Argument)]
    needed = sum(one.required for one in arguments)
    if not needed <= given <= len(arguments):
        return f"{node.name} takes {needed} to {len(arguments)} arguments, not {given}"
    return None


def test_the_commands_of_a_night_are_there():
    told = {" ".join(words[1:3]) for words in COMMANDS}
    for command in ("nightly CONFIG", "rollback DATASET", "gc DATASET", "verify DATASET"):
        assert command in told
    assert {"versions list", "versions show", "versions diff"} <= told


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_and_options_exist(words: list[str]):
    assert problem(words) is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("anisoalign nigthly CONFIG", "nigthly is no command"),
        ("anisoalign versions lst DATASET", "lst is no command"),
        ("anisoalign gc DATASET --kep 7", "--kep is no option"),
        ("anisoalign rollback DATASET", "takes 2 to 2 arguments, not 1"),
        ("anisoalign run CONFIG --set nightly.on_drfit=warn", "no such key"),
    ],
)
def test_a_wrong_command_is_found(line: str, found: str):
    assert found in (problem(line.split()) or "")


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


def test_links_and_files_exist():
    headings = re.findall(r"^#+ (.+)$", _PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in headings}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links
    assert set(links) <= anchors
    words = {*shlex.split(_SHELL, comments=True), *" ".join(INLINE).split()}
    files = {
        one for one in words if re.fullmatch(r"(configs|jobs|docs)/[\w/.]+|ray_cluster\.yaml", one)
    }
    assert {"configs/kuberay/Dockerfile", "configs/nightly.yaml", "jobs/nightly.py"} <= files
    assert [one for one in files if not (ROOT / one).exists()] == []
