"""A run from its lease to its summary, however it ends; what it asks of the cluster."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import ray.data

from pipeline.cluster.errors import user_error
from pipeline.cluster.lifecycle import RUN_FIELDS, new_run_id, run_flow
from pipeline.cluster.resources import Demand, Supply, asked_gpus, demands, unmet
from pipeline.report.console import Reporter
from pipeline.storage.lease import Lease, LeaseHeldError, LeaseLostError
from tests.cluster.samples import (
    error_line,
    execute,
    invoke,
    small_config,
    small_values,
    write_config,
)


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


class Events:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.fields: list[dict[str, Any]] = []

    def __call__(self, name: str, fields: Any) -> None:
        self.names.append(name)
        self.fields.append(dict(fields))


@pytest.mark.usefixtures("local_ray")
class TestRuns:
    def test_a_run_is_summed_up(self, tmp_path: Path):
        reporter, events = Reporter(quiet=True), Events()
        with reporter.observed_by(events):
            summary = run_flow(
                small_config(tmp_path / "run"), "fit", lambda *_: {"rank": 4}, reporter
            )
        assert summary == summary_of(tmp_path / "run")
        assert set(summary) == {"rank", *RUN_FIELDS}
        assert (summary["command"], summary["status"], summary["error"]) == ("fit", "done", None)
        assert summary["run_id"] == reporter.run_id
        assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", summary["run_id"])
        assert events.names == ["flow_started", "run_ended"]
        assert {one["run_id"] for one in events.fields} == {summary["run_id"]}
        # The lease was given back: the next run need not wait.
        assert run_flow(small_config(tmp_path / "run"), "fit", lambda *_: {}, reporter)

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (ValueError("no s3://me:secret@store/x"), "no s3://***@store/x"),
            (RuntimeError("a bug"), "RuntimeError: a bug"),
            (KeyboardInterrupt(), "interrupted"),
        ],
    )
    def test_a_failed_run_is_summed_up_and_raises(
        self, tmp_path: Path, error: BaseException, told: str
    ):
        def flow(*_: Any) -> dict[str, Any]:
            raise error

        events, reporter = Events(), Reporter(quiet=True)
        with pytest.raises(type(error)), reporter.observed_by(events):
            run_flow(small_config(tmp_path / "run"), "run", flow, reporter)
        summary = summary_of(tmp_path / "run")
        assert (summary["status"], summary["error"]) == ("failed", told)
        assert (events.names[-1], events.fields[-1]["error"]) == ("run_ended", told)

    def test_no_summary_hides_the_error(self, tmp_path: Path):
        def flow(*_: Any) -> dict[str, Any]:
            (tmp_path / "run/summary.json").mkdir()
            raise ValueError("the first thing that went wrong")

        with pytest.raises(ValueError, match="the first thing that went wrong"):
            run_flow(small_config(tmp_path / "run"), "run", flow, Reporter(quiet=True))

    def test_a_summary_is_json_that_everyone_reads(self, tmp_path: Path):
        flow = lambda *_: {"loss": float("nan")}  # noqa: E731
        with pytest.raises(ValueError, match="not JSON compliant"):
            run_flow(small_config(tmp_path / "run"), "run", flow, Reporter(quiet=True))
        assert summary_of(tmp_path / "run")["status"] == "failed"

    def test_a_second_run_says_who_is_at_work(self, tmp_path: Path):
        run = tmp_path / "run"
        run.mkdir()
        config = write_config(tmp_path / "c.yaml", small_values(run))
        (run / "summary.json").write_text("of the first")
        with Lease.acquire(str(run), run_id="the-first", command="nightly"):
            result = invoke("fit", config, "-q")
            with pytest.raises(LeaseHeldError):
                execute(small_config(run))
        assert result.exit_code == 1
        assert "the-first" in error_line(result)
        assert "`nightly`" in error_line(result)
        assert (run / "summary.json").read_text() == "of the first"

    def test_a_run_waits_for_a_holder_that_may_be_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        monkeypatch.setattr("pipeline.cluster.leases._LOOK_EVERY_S", 0.05)
        run = tmp_path / "run"
        run.mkdir()
        config = small_config(run, lease={"wait_s": 60})
        with Lease.acquire(str(run), run_id="the-first", command="nightly") as held:
            threading.Timer(0.5, held.release).start()
            assert run_flow(config, "fit", lambda *_: {}, Reporter())["status"] == "done"
        said = capsys.readouterr().err
        assert said.count("waiting up to 60 s") == 1
        assert "the-first" in said
        with Lease.acquire(str(run), run_id="the-second", command="nightly"):
            patient = small_config(run, lease={"wait_s": 1})
            with pytest.raises(LeaseHeldError, match="the-second"):
                run_flow(patient, "fit", lambda *_: {}, Reporter(quiet=True))

    def test_a_lease_lost_after_the_work_is_told_as_that(self, tmp_path: Path):
        def flow(*_: Any) -> dict[str, Any]:
            for path in (tmp_path / "run/lease").iterdir():
                path.unlink()
            return {}

        with pytest.raises(LeaseLostError) as failed:
            run_flow(small_config(tmp_path / "run"), "run", flow, Reporter(quiet=True))
        assert "publishes nothing" not in str(failed.value)
        assert "what it had published stands, its summary.json is not written" in str(failed.value)
        assert not (tmp_path / "run/summary.json").exists()

    def test_what_can_never_come_is_refused_at_once(self, tmp_path: Path):
        values = small_values(tmp_path / "run", ray={"encode_actors": 8, "gpus_per_actor": 1})
        (tmp_path / "c.txt").write_text("a\n")
        values["text"] = {"path": str(tmp_path / "c.txt")}
        result = invoke("encode", write_config(tmp_path / "c.yaml", values), "-q")
        assert result.exit_code == 1
        assert error_line(result) == (
            "the configuration asks for 8 GPUs (ray.encode_actors 8 x ray.gpus_per_actor 1), the "
            "cluster has 0: lower these keys or set them to their defaults, or add nodes before "
            "the run starts"
        )
        assert not (tmp_path / "run/embeddings").exists()

    def test_what_a_task_found_wrong_comes_back_as_one_line(self):
        def fail(_: Any) -> Any:
            raise ValueError("captions.txt is gone")

        dataset = ray.data.from_items([{"row": 1}]).map_batches(fail, batch_size=None)
        with pytest.raises(ray.exceptions.RayError) as failed:
            dataset.materialize()
        assert str(user_error(failed.value)) == "captions.txt is gone"


def test_run_ids_differ():
    assert len({new_run_id() for _ in range(50)}) == 50


def test_what_a_configuration_asks_for():
    config = small_config(
        Path("run"),
        ray={"encode_actors": 4, "gpus_per_actor": 0.5},
        train={"workers": 3, "cpus_per_worker": 2, "use_gpu": True},
    )
    actors = Demand("GPU", 2, "ray.encode_actors 4 x ray.gpus_per_actor 0.5")
    assert demands(config, "encode") == [actors]
    assert demands(config, "run") == [
        actors,
        Demand("CPU", 6, "train.workers 3 x train.cpus_per_worker 2"),
        Demand("GPU", 3, "train.workers 3, train.use_gpu true"),
    ]
    assert demands(small_config(Path("run")), "run") == []
    auto = small_config(Path("run"), ray={"encode_actors": "auto", "gpus_per_actor": 1})
    assert demands(auto, "run") == [Demand("GPU", 1, "ray.gpus_per_actor 1")]


def test_what_an_encoders_device_asks_for():
    on_gpu = small_config(Path("run"), encoder={"device": "cuda"}, ray={"encode_actors": 3})
    assert demands(on_gpu, "encode") == [
        Demand("GPU", 3, "ray.encode_actors 3 x encoder.device cuda")
    ]
    on_cpu = small_config(Path("run"), encoder={"device": "cpu"})
    assert demands(on_cpu, "encode") == []
    assert asked_gpus(on_cpu) == (0, "encoder.device cpu")
    assert asked_gpus(small_config(Path("run"))) == (None, "")


def test_demands_against_a_cluster():
    eight = [Demand("GPU", 8, "keys")]
    assert unmet(eight, Supply({"GPU": 8.0})) == (None, [])
    refusal, _ = unmet(eight, Supply({"CPU": 64.0, "GPU": 2.0}))
    assert refusal is not None
    assert refusal.startswith("the configuration asks for 8 GPUs (keys), the cluster has 2: ")
    # One that grows: refused past its limits, waited for within them or where nobody knows them.
    refusal, _ = unmet(eight, Supply({}, grows=True, most={"GPU": 4}))
    assert refusal is not None
    assert "its autoscaler adds nodes up to 4" in refusal
    for most in ({"GPU": 8}, None):
        refusal, waited = unmet(eight, Supply({"GPU": 1.0}, grows=True, most=most))
        assert refusal is None
        assert len(waited) == 1
        assert waited[0].endswith("waiting for its autoscaler to add nodes")


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        (None, False),
        ({"d65": "node_d65"}, False),
        ({"d65": "headgroup", "e12": "gpu-group"}, True),
    ],
)
def test_an_autoscaler_is_known_by_the_types_of_its_nodes(
    monkeypatch: pytest.MonkeyPatch, types: Any, grows: bool
):
    from pipeline.cluster import resources

    status = json.dumps({"autoscaler_report": {"node_type_mapping": types}} if types else {})
    monkeypatch.setattr(resources, "_internal_kv_get", lambda key: status.encode())
    assert resources._scales_by_status() == grows
    monkeypatch.setattr(resources, "_internal_kv_get", lambda key: None)
    assert not resources._scales_by_status()
