"""The report of a sweep is refreshed while jobs run and made at the end, and never ends a sweep."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.made_runs import make_sweep
from llm.config import sweep_report
from llm.config.sweep_report import SweepReport
from llm.errors import DiskError, Interrupted
from llm.experiment.sweep_file import read_sweep_file
from llm.experiment.watch import Watched
from llm.lock import locked
from llm.report.writing import Reporter
from tests.command_line import wait_until
from tests.conftest import HANGS

FILES = {"report.html", "report.json", "plotly.min.js"}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_report, "SECONDS", 0.01)
    monkeypatch.setattr(sweep_report, "SHARE", 1.0)
    return make_sweep(Path("multirun/depth"), {"model.n_layer": [2, 4]}, seeds=(1, 2), rows=2)


def watched(sweep: Path) -> list[Watched]:
    jobs = read_sweep_file(sweep / "sweep.json").jobs
    found = [Watched(sweep / name, values, will_run=False) for name, values in jobs.items()]
    for job in found:
        job.refresh()
    return found


def report(sweep: Path) -> dict[str, Any]:
    found = json.loads((sweep / "report.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def set_aside(sweep: Path, number: int) -> Callable[[], None]:
    """Let a job wait; returns a function that lets it finish."""
    folder = sorted(path for path in sweep.iterdir() if path.is_dir())[number]
    shutil.move(folder, "aside")
    return lambda: shutil.move("aside", folder)


def test_the_report_is_made_at_the_end_and_its_first_sentences_printed(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_report, "SECONDS", HANGS)  # a refresh would print no sentences
    with SweepReport(sweep, watched(sweep), "does depth pay?"):
        pass
    best, other, noise, path = capsys.readouterr().out.splitlines()
    assert best.startswith("The best settings are n_layer=4: best validation loss ")
    assert other.startswith("n_layer=2 is ") and "shown to be worse" in other
    assert noise.startswith("Runs that differ only in the seed have a standard deviation of ")
    assert path == "report: multirun/depth/report.html"
    assert {path.name for path in sweep.iterdir() if path.is_file()} == FILES | {"sweep.json"}
    found = report(sweep)
    assert (found["question"], found["is_running"]) == ("does depth pay?", False)
    reporter = Reporter([sweep])
    reporter.read()
    assert reporter.analyse().question == "does depth pay?"


def test_the_page_is_named_before_the_first_job_starts(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_aside(sweep, 1)
    with SweepReport(sweep, [Watched(job.folder, job.values) for job in watched(sweep)]) as view:
        view._stop.set()
        first = capsys.readouterr().out
    assert first == "report while the jobs run: multirun/depth/report.html\n"


def test_a_report_is_refreshed_when_a_job_ends_and_says_that_the_sweep_runs(sweep: Path) -> None:
    finish = set_aside(sweep, 1)
    jobs = watched(sweep)
    with locked(sweep, kind="sweep"), SweepReport(sweep, jobs):
        wait_until((sweep / "report.json").exists)
        first = report(sweep)
        assert first["is_running"] and first["counts"] == {"finished": 3, "waiting": 1}
        finish()
        jobs[1].refresh()
        wait_until(lambda: report(sweep)["counts"] == {"finished": 4})
    assert not report(sweep)["is_running"]


def test_nothing_is_refreshed_while_no_job_changes(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Jobs(list[Watched]):
        looks = 0

        def __iter__(self) -> Iterator[Watched]:
            self.looks += 1
            return super().__iter__()

    written = []
    write = SweepReport._write

    def counted(self: SweepReport, has_ended: bool = False) -> Any:
        written.append(has_ended)
        return write(self, has_ended)

    monkeypatch.setattr(SweepReport, "_write", counted)
    set_aside(sweep, 0)
    jobs = Jobs(watched(sweep))
    with SweepReport(sweep, jobs):
        wait_until(lambda: written and jobs.looks > 8)
    assert written == [False, True]


def test_jobs_that_have_not_run_since_the_report_was_made_need_no_other(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_report, "SECONDS", 3600.0)  # only the end makes a report
    with SweepReport(sweep, watched(sweep)):
        pass
    made = (sweep / "report.html").stat().st_mtime_ns
    capsys.readouterr()
    with SweepReport(sweep, watched(sweep)):
        pass
    assert capsys.readouterr().out == "report: multirun/depth/report.html\n"
    assert (sweep / "report.html").stat().st_mtime_ns == made
    killed = report(sweep) | {"is_running": True}
    (sweep / "report.json").write_text(json.dumps(killed), encoding="utf-8")
    with SweepReport(sweep, watched(sweep)):
        pass
    assert not report(sweep)["is_running"]
    made = (sweep / "report.html").stat().st_mtime_ns
    with SweepReport(sweep, [Watched(job.folder, job.values) for job in watched(sweep)]):
        pass  # these jobs belong to this command
    assert (sweep / "report.html").stat().st_mtime_ns > made
    made = (sweep / "report.html").stat().st_mtime_ns
    summary = next(sweep.glob("*/summary.json"))
    os.utime(summary, ns=(made + 1, made + 1))
    with SweepReport(sweep, watched(sweep)):
        pass
    assert (sweep / "report.html").stat().st_mtime_ns > made


def test_an_interrupted_sweep_gets_a_report_too(sweep: Path) -> None:
    set_aside(sweep, 0)
    lock = locked(sweep, kind="sweep")  # as the sweeper holds it until its end
    with pytest.raises(Interrupted), lock, SweepReport(sweep, watched(sweep)):
        raise Interrupted("stopped by SIGTERM")
    found = report(sweep)
    assert len(found["runs"]) == 3 and not found["is_running"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DiskError("report.html could not be written"), "report.html could not be written"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_is_one_warning_and_ends_nothing(
    error: Exception, said: str, sweep: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("llm.report.writing.analyse", fail)
    with SweepReport(sweep, watched(sweep)):
        pass
    assert capsys.readouterr().out.startswith(f"warning: no report: {said}")


def test_a_sweep_without_runs_or_without_plotly_says_in_one_line_that_there_is_no_report(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = Path("multirun/empty")
    empty.mkdir()
    with SweepReport(empty, []):
        pass
    assert capsys.readouterr().out.startswith("warning: no report: multirun/empty has no runs")
    monkeypatch.setattr("llm.report.writing.can_report", lambda: False)
    with SweepReport(sweep, watched(sweep)):
        pass
    assert capsys.readouterr().out == (
        "no report: the report needs plotly and scipy: "
        "pip install -c constraints.txt plotly scipy\n"
    )
