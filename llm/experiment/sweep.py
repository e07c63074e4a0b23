"""The jobs of a sweep: each is a process of its own, so a crash ends no other job."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm.errors import InUse, Refused
from llm.experiment.rundir import read_summary, write_summary
from llm.lock import locked
from llm.signals import Signalled, listener, raised, remember

PARENT_PIPE = "LLM_PARENT_PIPE"  # a file descriptor that closes when the sweep's process ends
GRACE_SECONDS = 60  # that a job has to finish its step and save, once it is asked to stop


@dataclass(frozen=True)
class Job:
    """One run of a sweep; ``command`` starts it."""

    number: int
    overrides: list[str]
    folder: Path
    command: list[str]


def run_job(
    job: Job, timeout_seconds: float | None = None, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a job and return its ``summary.json``; if the job wrote none, it is written here.

    ``environment``: variables to add to those of this process. On a signal, asks the job to save
    and stop, waits for it, and raises :class:`llm.signals.Signalled`.
    """
    before = read_summary(job.folder)
    start = time.perf_counter()
    with _signals_raised():
        code = _wait(job.command, timeout_seconds, environment or {})
    summary = read_summary(job.folder)
    if summary is not None and (code == 0 or summary != before):
        return summary
    killed = code is None or code < 0
    status = "killed" if killed else "refused" if code == Refused.exit_status else "failed"
    facts: dict[str, Any] = {"status": status, "reason": _reason(code, timeout_seconds)}
    if summary is None:  # else it is the summary of an earlier run in this folder
        job.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(InUse), locked(job.folder):
            write_summary(job.folder, **facts, wall_seconds=time.perf_counter() - start)
    return facts


def _reason(code: int | None, timeout_seconds: float | None) -> str:
    if code is None:
        return f"ran longer than {(timeout_seconds or 0) / 60:g} minutes"
    if code >= 0:
        return f"exit status {code}"
    known = -code in set(signal.Signals)  # real-time signals have numbers only
    return f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def _wait(
    command: list[str], timeout_seconds: float | None, environment: dict[str, str]
) -> int | None:
    """Run ``command`` and end all its processes; returns its exit status, negative for a signal,
    None for a timeout.
    """
    reading, writing = os.pipe()
    environment = os.environ | environment | {PARENT_PIPE: str(reading)}
    # In a process group of its own: Ctrl-C reaches only this process, which stops the job.
    child = subprocess.Popen(command, process_group=0, pass_fds=[reading], env=environment)
    os.close(reading)
    kill = partial(os.killpg, child.pid, signal.SIGKILL)
    listener.at_once.append(kill)  # another launcher may run several jobs in threads
    try:
        return child.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        _ask_to_stop(child)
        return None
    except Signalled:
        remember()  # a further signal must not cut the job's save short
        _ask_to_stop(child)
        raise
    finally:
        listener.at_once.remove(kill)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: zombies
            kill()  # the job, if it still runs, and processes it left behind
        child.wait()
        os.close(writing)


def _ask_to_stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise :class:`Signalled` on a signal, in a worker process of another launcher too."""
    if listener.previous or threading.current_thread() is not threading.main_thread():
        yield  # run_train.py does it already; in other threads, Python allows no handlers
        return
    try:
        with raised():
            yield
    finally:
        listener.stop_listening()


def follow_parent() -> None:
    """In a job: send SIGTERM to this process when the sweep that started it dies."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return
    os.set_inheritable(int(descriptor), False)

    def watch() -> None:
        os.read(int(descriptor), 1)  # nothing is ever written; returns when the other end closes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
