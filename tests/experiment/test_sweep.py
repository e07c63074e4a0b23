"""A job is a process of its own; however it ends, it leaves a summary and no process."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from llm.experiment.process import PARENT_PIPE, Child, follow_parent
from llm.experiment.rundir import write_summary
from llm.experiment.sweep import Job, Places, run_job, run_jobs
from llm.signals import SIGNALS, Signalled, listener
from tests.command_line import listing, summary, wait_until
from tests.conftest import HANGS, ROOT

SAVES_WHEN_STOPPED = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path("stopped").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def any_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.experiment.sweep.GRACE_SECONDS", HANGS)


def job(folder: Path, code: str) -> Job:
    """A job that runs some Python in ``folder``'s parent."""
    source = f"import os\nos.chdir({str(folder.parent)!r})\n" + textwrap.dedent(code)
    return Job(0, ["seed=1"], folder, [sys.executable, "-c", source])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "killed", "killed by SIGKILL"),
        pytest.param(
            "os.kill(os.getpid(), 36)",
            "killed",
            "killed by signal 36",
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="no real-time signals"),
        ),
        ("os.kill(os.getpid(), 15)", "killed", "killed by SIGTERM"),
        ("raise SystemExit(2)", "refused", "exit status 2"),
        ("raise SystemExit(1)", "failed", "exit status 1"),
        ("pass", "failed", "exit status 0"),
    ],
)
def test_a_job_that_left_no_summary_gets_one(
    code: str, status: str, reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "multirun" / "s" / "job"
    folder.parent.mkdir(parents=True)
    found = run_job(job(folder, code))
    written = summary(folder)
    assert (found["status"], found["reason"]) == (status, reason)
    assert (written["status"], written["reason"]) == (status, reason)
    assert written["wall_seconds"] > 0
    assert listing(folder) == {"summary.json"}


@pytest.mark.parametrize("place", ["a file", "a link to nowhere"])
def test_a_job_whose_folder_cannot_be_written_ends_no_other(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.touch() if place == "a file" else folder.symlink_to("nowhere")
    found = run_job(job(folder, "raise SystemExit('run folder job cannot be used')"))
    assert found["status"] == "failed"
    assert "cannot be used" in found["reason"]
    assert not folder.is_dir()


@pytest.mark.parametrize(("exit_status", "status"), [(0, "finished"), (3, "diverged"), (75, "x")])
def test_the_summary_that_the_job_wrote_counts(
    exit_status: int, status: str, tmp_path: Path
) -> None:
    write_summary(tmp_path, status="killed", step=1)
    code = f"""
        import json
        json.dump({{"status": "{status}", "step": 9}}, open("{tmp_path}/summary.json", "w"))
        raise SystemExit({exit_status})
    """
    assert run_job(job(tmp_path, code)) == {"status": status, "step": 9}


def test_a_second_ctrl_c_still_ends_the_jobs_of_other_threads_after_one_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_job() -> None: ...

    monkeypatch.setattr(listener, "at_once", [of_another_job])
    run_job(job(tmp_path, "pass"))
    assert listener.at_once == [of_another_job]


def test_a_finished_job_that_has_nothing_to_do_stays_finished(tmp_path: Path) -> None:
    write_summary(tmp_path, status="finished", step=5)
    assert run_job(job(tmp_path, "pass"))["step"] == 5


def test_a_job_that_is_refused_in_the_folder_of_another_run_leaves_the_summary_there(
    tmp_path: Path,
) -> None:
    write_summary(tmp_path, status="finished", step=5)
    before = (tmp_path / "summary.json").read_bytes()
    assert run_job(job(tmp_path, "raise SystemExit(2)"))["status"] == "refused"
    assert (tmp_path / "summary.json").read_bytes() == before


def test_a_job_beyond_its_time_is_asked_to_stop_and_its_processes_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import subprocess
open("pid", "w").write(str(subprocess.Popen(["sleep", "3600"]).pid))
"""
    # Instead of 90 seconds: the job has run too long as soon as it is ready.
    overdue = property(lambda _: 91.0 if (tmp_path / "ready").exists() else 0.0)
    monkeypatch.setattr(Child, "seconds", overdue)
    late = job(tmp_path / "job", code + SAVES_WHEN_STOPPED)
    found = run_jobs([late], Places(1), timeout_seconds=90)[0]
    assert (found["status"], found["reason"]) == ("killed", "ran longer than 1.5 minutes")
    assert (tmp_path / "stopped").exists()
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))


def test_a_job_that_saves_beyond_its_time_says_why_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = """pathlib.Path("stopped").touch()
    pathlib.Path("job").mkdir()
    end = '{"status": "interrupted", "reason": "SIGTERM at step 9", "step": 9}'
    pathlib.Path("job/summary.json").write_text(end)"""
    code = SAVES_WHEN_STOPPED.replace('pathlib.Path("stopped").touch()', saves)
    overdue = property(lambda _: 61.0 if (tmp_path / "ready").exists() else 0.0)
    monkeypatch.setattr(Child, "seconds", overdue)
    found = run_jobs([job(tmp_path / "job", code)], Places(1), timeout_seconds=60)[0]
    written = summary(tmp_path / "job")
    assert found["reason"] == written["reason"] == "ran longer than 1 minute (SIGTERM at step 9)"
    assert (written["status"], written["step"]) == ("interrupted", 9)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_sweep_stops_the_job_which_is_waited_for(
    number: signal.Signals, tmp_path: Path
) -> None:
    def send() -> None:
        wait_until((tmp_path / "ready").exists)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Signalled, match=number.name):
        run_job(job(tmp_path / "job", SAVES_WHEN_STOPPED))
    sender.join()
    assert (tmp_path / "stopped").exists()
    assert signal.getsignal(number) is before


def test_a_job_stops_when_its_sweep_is_killed(tmp_path: Path) -> None:
    here = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    follows = "from llm.experiment.process import follow_parent; follow_parent()\n"
    command = job(tmp_path / "job", here + follows + SAVES_WHEN_STOPPED).command
    source = f"""
from pathlib import Path
from llm.experiment.sweep import Job, run_job
run_job(Job(0, [], Path({str(tmp_path)!r}), {command!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", here + source])
    try:
        wait_until((tmp_path / "ready").exists)
    finally:
        parent.kill()
        parent.wait()
    wait_until((tmp_path / "stopped").exists)


def test_a_run_outside_a_sweep_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_PIPE, raising=False)
    threads = threading.active_count()
    follow_parent()
    assert threading.active_count() == threads
