"""Several jobs at once: as many as the launcher allows, the memory holds and the GPUs can take."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from llm.experiment import process, sweep
from llm.experiment.process import Child
from llm.experiment.sweep import Job, Places, run_jobs
from llm.lock import locked
from llm.signals import Signalled
from tests.command_line import summary, wait_until
from tests.conftest import HANGS

GIB = 2**30
# Says that it runs, and waits until a file says that it may end.
WAITS = """
import json, os, pathlib, sys, time
name = sys.argv[1]
pathlib.Path(name + ".runs").touch()
while not pathlib.Path(name + ".may-end").exists():
    time.sleep(0.01)
os.makedirs(name)
with open(name + "/summary.json", "w") as file:
    json.dump({"status": "finished", "threads": os.environ.get("OMP_NUM_THREADS"),
               "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}, file)
"""
COUNTS_SIGNALS = """
import pathlib, signal, sys, time
counter = pathlib.Path(sys.argv[1] + ".signals")
def stop(number, frame):
    counter.write_text((counter.read_text() if counter.exists() else "") + "TERM ")
    time.sleep(0.3)  # saves
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: counter.write_text("INT "))
pathlib.Path(sys.argv[1] + ".runs").touch()
time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def any_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "GRACE_SECONDS", HANGS)


def job(
    folder: Path, number: int, code: str = WAITS, peak: int = 0, room: int | None = None
) -> Job:
    path = folder / f"job-{number}"
    return Job(number, [], path, [sys.executable, "-c", code, str(path)], peak, room)


def running(folder: Path) -> list[int]:
    """The numbers of the jobs that have started."""
    return sorted(int(path.stem.removeprefix("job-")) for path in folder.glob("*.runs"))


def let_end(folder: Path, number: int) -> None:
    (folder / f"job-{number}.may-end").touch()


def assert_together(folder: Path, jobs: list[Job], n_jobs: int, expected: list[list[int]]) -> None:
    """Run the jobs, of which the first running one ends each time: ``expected`` run together."""
    running: set[int] = set()
    seen: list[list[int]] = []

    def end_one_by_one() -> None:
        for together in expected:
            wait_until(lambda together=together: len(running) >= len(together))
            seen.append(sorted(running))
            first = seen[-1][0]
            let_end(folder, first)
            wait_until(lambda first=first: first not in running)

    thread = threading.Thread(target=end_one_by_one)
    thread.start()
    ends = run_jobs(
        jobs, Places(n_jobs),
        on_start=lambda job: running.add(job.number),
        on_end=lambda job, _: running.discard(job.number),
    )  # fmt: skip
    thread.join()
    assert seen == expected
    assert all(end["status"] == "finished" for end in ends.values())


def test_as_many_jobs_as_allowed_run_together_in_their_order(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number) for number in range(4)]
    assert_together(tmp_path, jobs, 2, [[0, 1], [1, 2], [2, 3], [3]])


def test_jobs_run_together_only_if_their_peaks_fit_the_memory_together(tmp_path: Path) -> None:
    peaks = [2 * GIB, 3 * GIB, GIB, 9 * GIB]
    jobs = [job(tmp_path, n, peak=peak, room=4 * GIB) for n, peak in enumerate(peaks)]
    # 1 does not fit beside 0, but 2 does; 3 fits nowhere and runs alone.
    assert_together(tmp_path, jobs, 3, [[0, 2], [1, 2], [2], [3]])


def test_each_of_several_gpus_gets_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 3")
    jobs = [job(tmp_path, n, peak=3 * GIB, room=4 * GIB) for n in range(3)]
    assert_together(tmp_path, jobs, 3, [[0, 1], [1, 2], [2]])
    gpus = [summary(tmp_path / f"job-{number}")["gpu"] for number in range(3)]
    assert gpus == ["GPU-a", "3", "GPU-a"]


def test_jobs_on_the_cpu_share_its_memory_whatever_gpus_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    jobs = [job(tmp_path, n, peak=3 * GIB, room=4 * GIB) for n in range(2)]
    jobs = [replace(one, is_on_cpu=True) for one in jobs]
    assert_together(tmp_path, jobs, 2, [[0], [1]])


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", []), ("-1", []), ("2", ["2"]), ("0,1", ["0", "1"])]
)
def test_the_environment_says_which_gpus_are_visible(
    visible: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert sweep.visible_gpus() == gpus


@pytest.mark.parametrize(("n_jobs", "threads"), [(1, None), (2, "3"), (4, "1"), (9, "1")])
def test_the_cores_are_divided_among_the_jobs(
    n_jobs: int, threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    let_end(tmp_path, 0)
    run_jobs([job(tmp_path, 0)], Places(n_jobs))
    assert summary(tmp_path / "job-0")["threads"] == threads


def test_a_system_that_cannot_bind_a_process_to_cores_has_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert Places(2).threads == 4


def test_a_given_number_of_threads_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    let_end(tmp_path, 0)
    run_jobs([job(tmp_path, 0)], Places(2))
    assert summary(tmp_path / "job-0")["threads"] == "5"


def test_ctrl_c_asks_every_job_once_and_waits_for_all(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_until(lambda: len(running(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    jobs = [job(tmp_path, number, COUNTS_SIGNALS) for number in range(3)]
    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(Signalled, match="SIGINT"), sweep._signals_raised():
        run_jobs(jobs, Places(2))
    sender.join()
    for number in range(2):
        assert (tmp_path / f"job-{number}.signals").read_text() == "TERM "
        assert summary(tmp_path / f"job-{number}")["status"] == "interrupted"
    assert running(tmp_path) == [0, 1], "the third was never started"


def test_a_job_that_fails_ends_no_other(tmp_path: Path) -> None:
    raises = "raise SystemExit('out of ideas')"
    kills_itself = "import os; os.kill(os.getpid(), 9)"
    let_end(tmp_path, 2)
    jobs = [job(tmp_path, 0, raises), job(tmp_path, 1, kills_itself), job(tmp_path, 2)]
    ends = run_jobs(jobs, Places(2))
    assert [ends[n]["status"] for n in range(3)] == ["failed", "killed", "finished"]
    assert ends[0]["reason"] == "exit status 1: out of ideas"
    assert (tmp_path / "job-0/run_train.log").read_text() == "out of ideas\n"


@pytest.mark.parametrize("is_signal", [True, False])
def test_whatever_ends_the_sweep_a_job_that_has_started_is_asked_to_stop(
    is_signal: bool, tmp_path: Path
) -> None:
    def started(one: Job) -> None:
        if not is_signal:
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGINT)

    expected = Signalled if is_signal else ZeroDivisionError
    with pytest.raises(expected), sweep._signals_raised():
        run_jobs([job(tmp_path, 0, COUNTS_SIGNALS)], Places(1), on_start=started)
    end = summary(tmp_path / "job-0")
    soon = ("killed", "killed by SIGTERM")  # before the job has installed its handler
    assert end["status"] == "interrupted" or (end["status"], end["reason"]) == soon


def test_a_job_that_the_kernel_killed_for_its_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom 0\noom_kill 4\n")
    monkeypatch.setattr(process, "OOM_COUNTERS", (str(counter),))
    code = f"import os; open({str(counter)!r}, 'w').write('oom_kill 5\\n'); os.kill(os.getpid(), 9)"
    ends = run_jobs([job(tmp_path, 0, code)], Places(1))
    reason = "killed by the out-of-memory killer of the kernel"
    assert (ends[0]["status"], ends[0]["reason"]) == ("killed", reason)


def test_a_job_waits_for_the_process_that_still_writes_to_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = job(tmp_path, 0)
    waiting.folder.mkdir()
    let_end(tmp_path, 0)
    let_end(tmp_path, 1)
    code = WAITS.replace("os.makedirs(name)", "os.makedirs(name, exist_ok=True)")
    jobs = [job(tmp_path, 0, code), job(tmp_path, 1)]
    ended: list[int] = []
    with locked(waiting.folder) as warning:
        assert warning is None
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"

    def release() -> None:
        wait_until(lambda: 1 in ended)
        assert running(tmp_path) == [1]
        (tmp_path / "release").touch()

    thread = threading.Thread(target=release)
    thread.start()
    ends = run_jobs(jobs, Places(2), on_end=lambda job, _: ended.append(job.number))
    thread.join()
    holder.communicate()
    assert ended == [1, 0]
    assert ends[0]["status"] == "finished"
    assert f"waiting for process {holder.pid}, which still writes to" in capsys.readouterr().out


HOLDS = """
import pathlib, sys, time
from llm.lock import locked
folder = pathlib.Path(sys.argv[1])
with locked(folder / "job-0"):
    print("locked", flush=True)
    while not (folder / "release").exists():
        time.sleep(0.01)
"""


def test_a_child_is_not_lost_when_it_is_closed_twice(tmp_path: Path) -> None:
    child = Child(tmp_path / "job", [sys.executable, "-c", "print('done')"], {})
    wait_until(child.is_over)
    child.close()
    assert child.tail == b"done\n"
