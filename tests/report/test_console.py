"""What is printed: progress on stderr, results on stdout, nothing cut when piped."""

from __future__ import annotations

import pytest

from pipeline.report.console import Reporter
from pipeline.report.methods import TABLE_METRICS, run_rows, table_rows


def test_results_go_to_stdout_and_progress_to_stderr(capsys: pytest.CaptureFixture[str]):
    reporter = Reporter()
    reporter.say("working [on] it")
    reporter.table("Results", ["name", "value"], [["first", "1.000"], ["second", "22.000"]])
    captured = capsys.readouterr()
    assert captured.err == "working [on] it\n"
    lines = captured.out.splitlines()
    assert lines[0].strip() == "Results"
    assert any("second" in line and "22.000" in line for line in lines)


def test_quiet_leaves_the_results(capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(quiet=True)
    reporter.say("working")
    with reporter.progress("bar", 3) as advance:
        advance(3)
    with reporter.counted("count") as show:
        show(1, 2)
    with reporter.training() as step:
        step("prior", 1, 2, 0.5)
    reporter.table("Results", ["name"], [["first"]])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "first" in captured.out


def test_bars_end_when_work_fails():
    reporter = Reporter()

    def fail() -> None:
        with reporter.counted("count") as show:
            show(1, 2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with reporter.counted("again") as show:  # a second live bar would be refused
        show(2, 2)


def test_wide_figures_are_not_cut(capsys: pytest.CaptureFixture[str]):
    columns = ["method", *(f"metric_{index}" for index in range(8))]
    Reporter().table("T", columns, [["AnisoAlign, init only", *("0.123",) * 8]])
    out = capsys.readouterr().out
    assert "…" not in out
    assert out.count("0.123") == 8


def test_tables_show_a_dash_where_nothing_was_measured():
    values = dict.fromkeys(TABLE_METRICS, 0.25) | {"psi": None, "a_r": float("nan")}
    metrics = {"methods": {"realign": values}}
    expected = ["0.250", "0.250", "0.250", "0.250", "–", "0.250", "–", "0.250"]
    assert table_rows(metrics) == [["ReAlign", *expected]]
    assert run_rows({"run": metrics}) == [["ReAlign", "run", *expected]]
