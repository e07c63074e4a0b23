"""Jobs: lists of overrides, each a command in its own process. One that dies ends only itself."""

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

PARENT_PIPE = "LLM_PARENT_PIPE"  # a file descriptor that closes when whoever started a job is gone
GRACE_SECONDS = 60  # for a job that has been told to stop: one step and one save


@dataclass(frozen=True)
class Job:
    """One run of a sweep. ``command`` is what a person would type to run it alone."""

    number: int
    overrides: list[str]
    folder: Path
    command: list[str]


def run_job(
    job: Job, timeout_seconds: float | None = None, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a job to its end and return its ``summary.json``, written here if the job could not.

    ``environment`` is added to this process's own. Raises :class:`llm.signals.Signalled` when this
    process is told to stop meanwhile; the job has been told to save and stop then, and has ended.
    """
    before = read_summary(job.folder)
    start = time.perf_counter()
    with _signals_raised():
        code = _wait(job.command, timeout_seconds, environment or {})
    found = read_summary(job.folder)
    if found is not None and (code == 0 or found != before):
        return found
    killed = code is None or code < 0
    status = "killed" if killed else "refused" if code == Refused.exit_status else "failed"
    facts: dict[str, Any] = {"status": status, "reason": _reason(code, timeout_seconds)}
    if found is None:  # else it speaks of another run, which this job was refused to touch
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
    """Exit status of ``command``, negative for a signal, None for a timeout.

    Nothing of it lives on.
    """
    reading, writing = os.pipe()
    of_child = os.environ | environment | {PARENT_PIPE: str(reading)}
    # A group of its own: Ctrl-C then reaches only this process, which tells the job once.
    child = subprocess.Popen(command, process_group=0, pass_fds=[reading], env=of_child)
    os.close(reading)
    kill = partial(os.killpg, child.pid, signal.SIGKILL)
    listener.at_once.append(kill)  # beside those of other threads, under another launcher
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
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: all are zombies
            kill()  # a job still running, or something it left behind
        child.wait()
        os.close(writing)


def _ask_to_stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Raise :class:`Signalled` on a signal, in the worker of another launcher too."""
    if listener.previous or threading.current_thread() is not threading.main_thread():
        yield  # our own command does already; in other threads, Python allows no handlers
        return
    try:
        with raised():
            yield
    finally:
        listener.stop_listening()


def follow_parent() -> None:
    """In a job: stop, as if told to, when the sweep that started it dies (Linux and macOS)."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return
    os.set_inheritable(int(descriptor), False)

    def watch() -> None:
        os.read(int(descriptor), 1)  # nobody writes; it returns when the other end closes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
