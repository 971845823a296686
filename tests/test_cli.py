"""The command line: what it prints, how it exits, what it loads."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from pipeline.cli import cli
from pipeline.cluster.demo import DEMO_SETTINGS
from pipeline.config import RunConfig, parse_config
from tests.cluster.samples import (
    cloud_values,
    error_line,
    invoke,
    small_values,
    write_config,
)

REPOSITORY = Path(__file__).parent.parent
CONFIGS = REPOSITORY / "configs"


def commands(group: click.Group, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [above]
    for name, command in group.commands.items():
        deeper = isinstance(command, click.Group)
        found += commands(command, (*above, name)) if deeper else [(*above, name)]
    return found


def python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Take back what a command with -v or --log-json sets for its whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


# -- help and configuration ------------------------------------------------------------------------


@pytest.mark.parametrize("command", commands(cli), ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: {' '.join(['anisoalign', *command])}")
    assert max(len(line) for line in result.stdout.splitlines()) <= 100


def test_the_commands_that_are_promised():
    promised = {"demo", "run", "encode", "fit", "synthesize", "verify"}
    names = {" ".join(command) for command in commands(cli)}
    assert promised <= names
    assert {
        "evaluate geometry",
        "evaluate compare",
        "config show",
        "config validate",
        "config schema",
    } <= names


def test_the_version():
    assert invoke("--version").stdout.startswith("anisoalign, version ")


@pytest.mark.parametrize(
    "arguments", [["nope"], ["run"], ["run", "a", "b"], ["verify"], ["run", "x.yaml", "--nope"]]
)
def test_wrong_usage_exits_2(arguments: list[str]):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_validate(path: Path):
    result = invoke("config", "validate", str(path))
    assert (result.exit_code, result.stdout) == (0, f"{path}: OK\n")


def test_validate_in_json():
    result = invoke("config", "validate", str(CONFIGS / "demo.yaml"), "--json", "-q")
    found = json.loads(result.stdout)
    assert found == {"valid": True, "fingerprint": parse_config(DEMO_SETTINGS).fingerprint()}


def test_show_fills_in_the_defaults():
    arguments = ["config", "show", str(CONFIGS / "demo.yaml"), "--set", "align.rank=32"]
    shown = yaml.safe_load(invoke(*arguments).stdout)
    assert shown["align"]["rank"] == 32
    assert shown["units"]["rows_per_shard"] == 4096
    assert shown["rejects"]["max_share"] == 0.01
    assert json.loads(invoke(*arguments, "--json").stdout.splitlines()[-1]) == shown


def test_the_schema_names_every_section():
    schema = json.loads(invoke("config", "schema").stdout)
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert "description" in schema["$defs"]["TextSource"]["properties"]["path"]


@pytest.mark.parametrize("command", ["run", "encode", "fit", "synthesize"])
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("align.rnk=4", "unknown key align.rnk; did you mean align.rank?"),
        ("align.rank=3", "align.rank must be auto or an even number of at least 2, not 3"),
        ("units.rows_per_shard=many", "units.rows_per_shard: "),
        ("nonsense", "--set takes KEY=VALUE"),
    ],
)
def test_a_wrong_configuration_exits_2_before_anything_starts(
    tmp_path: Path, command: str, setting: str, said: str
):
    path = write_config(tmp_path / "c.yaml", {})
    result = invoke(command, path, "--set", setting)
    assert result.exit_code == 2
    assert said in error_line(result)


def test_a_missing_configuration_exits_2(tmp_path: Path):
    result = invoke("run", str(tmp_path / "lost.yaml"))
    assert result.exit_code == 2
    assert error_line(result) == (
        f"cannot read the configuration {tmp_path}/lost.yaml: No such file or directory"
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("demo.pairs=20", "demo.pairs is 20; measuring needs at least 21"),
        ("demo.images=0", "demo.images: Input should be greater than or equal to 1, not 0"),
        ("demo.caption=5", "unknown key demo.caption; did you mean demo.captions?"),
    ],
)
def test_sizes_of_the_demo_that_cannot_be(setting: str, said: str):
    result = invoke("demo", "--set", setting)
    assert result.exit_code == 2
    assert error_line(result) == said


def test_verbose_adds_the_traceback(tmp_path: Path):
    result = invoke("verify", str(tmp_path / "nothing"), "-v")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: there is no dataset in ")


def test_errors_do_not_steer_the_terminal(tmp_path: Path):
    for options in ([], ["-v"], ["--log-json"]):
        result = invoke("verify", str(tmp_path / "evil\x1b[2J\u202e"), *options)
        assert result.exit_code == 1
        shown = json.loads(result.stderr)["message"] if "--log-json" in options else result.stderr
        assert ("\x1b[2J\u202e" if shown != result.stderr else "\\x1b[2J\\u202e") in shown
        assert not {"\x1b", "\u202e"} & set(result.stderr)


def test_a_machine_reads_errors_too(tmp_path: Path):
    result = invoke("verify", str(tmp_path / "nothing"), "--log-json", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    found = json.loads(line)
    assert (found["level"], found["event"]) == ("error", "error")
    assert found["message"].startswith("there is no dataset in ")
    assert "traceback" not in found
    (line,) = invoke("verify", str(tmp_path / "n"), "--log-json", "-v").stderr.splitlines()
    assert "Traceback" in json.loads(line)["traceback"]


@pytest.mark.parametrize("options", [(), ("-v",), ("--log-json",), ("--log-json", "-v")], ids=str)
def test_errors_hold_no_credentials(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]):
    def fail(*_: object, **__: object) -> None:
        try:
            raise OSError("GET https://store/key?X-Amz-Signature=secret failed")
        except OSError as error:
            raise RuntimeError("cannot list s3://me:secret@store/x") from error

    monkeypatch.setattr("pipeline.storage.verification.verify", fail)
    result = invoke("verify", "somewhere", *options)
    assert result.exit_code == 1
    assert "RuntimeError: cannot list s3://***@store/x" in result.stderr
    assert ("https://store/key?***" in result.stderr) == ("-v" in options)
    assert "secret" not in result.output


# -- what is loaded --------------------------------------------------------------------------------

WITHOUT_HEAVY = """
import sys
from pipeline.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in ("ray", "torch", "open_clip", "pyarrow") if name in sys.modules]
print("loaded:", *loaded)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["evaluate", "geometry", "--help"],
        ["config", "validate", "configs/demo.yaml"],
        ["config", "show", "configs/cluster.yaml"],
    ],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(arguments: list[str]):
    done = python(WITHOUT_HEAVY, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_dry_run_plans_without_ray(tmp_path: Path, clouds: Path):
    """A process of its own, told to look for a cluster that is not there."""
    (tmp_path / "captions.txt").write_text("one\ntwo\nthree\n")
    values = cloud_values(
        clouds,
        tmp_path / "run",
        text={"path": str(tmp_path / "captions.txt"), "embedding_column": None},
        units={"rows_per_shard": 2},
        ray={"address": "10.255.255.1:1"},
    )
    config = write_config(tmp_path / "c.yaml", values)
    done = python(WITHOUT_HEAVY, "run", config, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    *_, plan, loaded = done.stdout.splitlines()
    assert "ray" not in loaded
    shared = {"duplicate_units": 0, "skipped_files": 0}
    text = {"path": f"{tmp_path}/captions.txt", "rows": 3, "units": 2, "encode": True, **shared}
    text = {**text, "new_units": 2, "vanished_units": 0}
    image = {"path": f"{clouds}/images.parquet", "encode": False, **shared}
    image = {**image, "rows": 150, "units": 75, "new_units": 0, "vanished_units": 0}
    assert json.loads(plan) == {"plan": {"text": text, "image": image}}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["encode", "synthesize", "nightly"])
def test_other_dry_runs(tmp_path: Path, command: str):
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    values = small_values(tmp_path / "run", text={"path": str(tmp_path / "captions.txt")})
    result = invoke(command, write_config(tmp_path / "c.yaml", values), "--dry-run", "--json", "-q")
    assert result.exit_code == 0, result.output
    assert "Plan (nothing was" in result.stdout
    plan = json.loads(result.stdout.splitlines()[-1])["plan"]
    assert list(plan) == ["text"]
    assert plan["text"]["rows"] == 2
    assert not (tmp_path / "run").exists()


def test_a_dry_run_still_fails_on_a_bad_input(tmp_path: Path):
    values = small_values(tmp_path / "run", text={"path": str(tmp_path / "lost.txt")})
    result = invoke("encode", write_config(tmp_path / "c.yaml", values), "--dry-run", "-q")
    assert result.exit_code == 1
    assert error_line(result) == f"there is no file or folder {tmp_path}/lost.txt"


def test_a_cluster_that_is_not_there(tmp_path: Path):
    """In a process of its own; nothing but one line on stderr, at once."""
    config = write_config(tmp_path / "c.yaml", {"output": {"path": str(tmp_path / "run")}})
    program = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
    for settings, environment in (
        (["--set", "ray.address=127.0.0.1:1"], {}),
        ([], {"RAY_ADDRESS": "127.0.0.1:1"}),
    ):
        done = python(program, "fit", config, *settings, **environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: cannot reach Ray at ray.address=")
        assert "Connection refused" in done.stderr


def test_a_failed_run_in_a_process_of_its_own(tmp_path: Path):
    """Ray is started and stopped; stderr holds one line."""
    (tmp_path / "captions.txt").write_bytes(b"fine\ncaf\xe9\n")
    values = small_values(tmp_path / "run", text={"path": str(tmp_path / "captions.txt")})
    config = write_config(tmp_path / "c.yaml", values)
    program = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
    # Not below tmp_path: the path of a Unix socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        done = python(program, "encode", config, "-q", RAY_TMPDIR=folder, HOME=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr == (
        f"error: 1 of 2 rows of {tmp_path}/captions.txt cannot be used (1 not_utf8), more than "
        f"rejects.max_share=0.01 allows; rejected rows stand in "
        f"{tmp_path}/run/embeddings/text/quarantine; mend the input or raise the limit\n"
    )
