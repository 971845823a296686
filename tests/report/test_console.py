"""What is printed: progress on stderr, results on stdout, nothing cut when piped."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from pipeline.report.console import Reporter
from pipeline.report.events import JsonLines, JsonLogHandler, printable
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


def lines_of(captured: Any) -> list[dict[str, Any]]:
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_machine_reads_one_object_a_line(capsys: pytest.CaptureFixture[str]):
    lines = JsonLines()
    reporter = Reporter(lines=lines)
    reporter.run_id = "r1"
    reporter.say("working\x1b[31m")
    reporter.event("unit_written", unit="u1", rows=5, path=object)
    reporter.event("unit_failed", level="error", unit="u2", loss=float("nan"))
    with reporter.progress("bar", 3) as advance:
        advance(1)  # only the first, the last and now and then one between
        advance(1)
        advance(1)
    with reporter.counted("count") as show:
        show(1, 2)
        show(2, 2)
    with reporter.training() as step:
        step("prior", 1, 2, 0.5)
    found = lines_of(capsys.readouterr())
    assert all(line["run_id"] == "r1" and line["time"] for line in found)
    named = [(line["event"], line.get("done")) for line in found]
    assert named == [
        ("message", None),
        ("unit_written", None),
        ("unit_failed", None),
        ("progress", 1),
        ("progress", 3),
        ("progress", 1),
        ("progress", 2),
        ("progress", 1),
    ]
    assert found[0]["message"] == "working\x1b[31m"
    assert (found[1]["unit"], found[1]["rows"], found[1]["level"]) == ("u1", 5, "info")
    assert (found[2]["level"], found[2]["loss"]) == ("error", "nan")
    assert found[-1] == {**found[-1], "title": "training prior", "total": 2, "loss": 0.5}


def test_log_records_join_the_lines(capsys: pytest.CaptureFixture[str]):
    handler = JsonLogHandler(JsonLines())
    logger = logging.getLogger("tests.console")
    logger.addHandler(handler)
    try:
        logger.warning("the store is slow: %s", "3 s")
        try:
            raise RuntimeError("a bug at https://store/key?X-Amz-Signature=secret")
        except RuntimeError:
            logger.exception("failed at s3://me:secret@store/x")
    finally:
        logger.removeHandler(handler)
    slow, failed = lines_of(capsys.readouterr())
    assert (slow["level"], slow["event"], slow["logger"]) == ("warning", "log", "tests.console")
    assert slow["message"] == "the store is slow: 3 s"
    assert "RuntimeError: a bug at https://store/key?***" in failed["traceback"]
    assert failed["message"] == "failed at s3://***@store/x"
    assert "secret" not in failed["traceback"]


def test_observers_are_told_of_events_while_they_watch():
    told = []
    reporter = Reporter(quiet=True)
    with reporter.observed_by(lambda name, fields: told.append((name, fields))):
        reporter.run_id = "r1"
        reporter.event("planned", name="encoding text", units=3)
    reporter.event("planned", name="encoding text", units=4)
    assert told == [("planned", {"run_id": "r1", "name": "encoding text", "units": 3})]


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "a\rb", "\u202egnp.exe", "a\x00", "\x07"])
def test_nothing_that_is_shown_steers_the_terminal(capsys: pytest.CaptureFixture[str], text: str):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape") == text
    assert printable("Größe 日本 🙂.txt") == "Größe 日本 🙂.txt"
    Reporter().say(text)
    Reporter().table("T", ["name"], [[text]])
    captured = capsys.readouterr()
    assert all(sign.isprintable() or sign == "\n" for sign in captured.err + captured.out)
