"""The jobs of a sweep: each is a process of its own, so a crash ends no other job."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm.errors import Refused
from llm.experiment.console import say
from llm.experiment.process import Child
from llm.lock import owner_of
from llm.sealed import Plain
from llm.signals import delayed, listener, raised, remember
from llm.units import plural

GRACE_SECONDS = 60  # that a job has to finish its step and save, once it is asked to stop
POLL_SECONDS = 0.02
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep; ``command`` starts it."""

    number: int
    overrides: list[str]
    folder: Path
    command: list[str]
    peak: int = 0  # predicted bytes
    room: int | None = None  # bytes that the jobs on its device may take together; None: no limit
    is_on_cpu: bool = False  # so it needs none of the GPUs


class Places:
    """Where jobs run: up to ``n_jobs`` at once, each on its own GPU if there are several.

    Jobs that share a device run together only if their predicted peaks fit its memory together; a
    job that does not fit beside others waits until it is alone.
    """

    def __init__(self, n_jobs: int) -> None:
        gpus = visible_gpus()
        self.n_jobs = n_jobs
        self.devices: list[str | None] = [*gpus] if n_jobs > 1 and len(gpus) > 1 else [None]
        self.jobs: dict[int, tuple[str | None, int]] = {}  # device and peak, by a job's number
        self.threads = max(1, usable_cores() // n_jobs) if n_jobs > 1 else None

    def take(self, job: Job) -> dict[str, str] | None:
        """Environment variables for ``job``; None if it must wait for others to end."""
        if len(self.jobs) >= self.n_jobs:
            return None
        devices = [None] if job.is_on_cpu else self.devices
        peaks = {device: self._peaks(device) for device in devices}
        device = min(devices, key=lambda one: (len(peaks[one]), sum(peaks[one])))
        is_full = job.room is not None and sum(peaks[device]) + job.peak > job.room
        if peaks[device] and is_full:
            return None
        self.jobs[job.number] = (device, job.peak)
        environment = {} if device is None else {VISIBLE: device}
        if self.threads is not None and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment

    def _peaks(self, device: str | None) -> list[int]:
        return [peak for place, peak in self.jobs.values() if place == device]

    def leave(self, job: Job) -> None:
        """``job`` has ended."""
        del self.jobs[job.number]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return [name for name in names if name not in ("", "-1")]
    return [str(n) for n in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


def usable_cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def machine_memory() -> int:
    """Bytes of memory that processes here may take together."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total


def run_job(job: Job, environment: dict[str, str] | None = None) -> Plain:
    """Run one job and return its ``summary.json``; see :func:`run_jobs`."""
    with _signals_raised():
        return run_jobs([job], Places(1), environment=environment)[job.number]


def run_jobs(
    jobs: Sequence[Job], places: Places, timeout_seconds: float | None = None,
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[Job, Plain], None] = lambda job, summary: None,
    environment: dict[str, str] | None = None,
) -> dict[int, Plain]:  # fmt: skip
    """Run all jobs, as many at once as ``places`` has room for; returns their summaries by number.

    ``environment``: variables to add to those of this process. A job that wrote no summary gets
    one. After a signal (:class:`llm.signals.Signalled`) or an error, each running job is asked once
    to save and stop and is waited for, before the exception is raised again.
    """
    run = _Run(list(jobs), places, timeout_seconds, on_start, on_end, environment or {})
    try:
        while run.waiting or run.running:
            run.start_jobs()
            run.collect_ends()
            time.sleep(POLL_SECONDS)
    except BaseException:
        remember()  # a further signal must not cut the saving of a job short
        run.stop()
        raise
    finally:
        for child in run.running.values():
            child.close()
    return run.ends


@dataclass
class _Run:
    """The jobs of :func:`run_jobs` that wait, run and have ended."""

    waiting: list[Job]
    places: Places
    timeout_seconds: float | None
    on_start: Callable[[Job], None]
    on_end: Callable[[Job, Plain], None]
    environment: dict[str, str]
    running: dict[Job, Child] = field(default_factory=dict)
    ends: dict[int, Plain] = field(default_factory=dict)
    in_use: dict[Job, str] = field(default_factory=dict)  # the process that writes to its folder

    def start_jobs(self) -> None:
        """Start the waiting jobs for which there is a place."""
        for job in list(self.waiting):
            if (place := self.places.take(job)) is None:
                continue
            if self._is_in_use(job):
                self.places.leave(job)
                continue
            with delayed():  # a signal must not lose a child that has just been started
                self.running[job] = Child(job.folder, job.command, place | self.environment)
                self.waiting.remove(job)
                self.on_start(job)

    def _is_in_use(self, job: Job) -> bool:
        # For example by a job of a sweep that was killed, which is still saving.
        owner = owner_of(job.folder)
        if owner is not None and self.in_use.get(job) != owner:
            self.in_use[job] = owner
            say(f"waiting for process {owner}, which still writes to {job.folder}")
        return owner is not None

    def collect_ends(self) -> None:
        """Record how jobs have ended, and end those that have run too long."""
        for job, child in list(self.running.items()):
            if self.timeout_seconds is not None and child.seconds > self.timeout_seconds:
                child.ask_to_stop(GRACE_SECONDS, is_late=True)
            if child.is_over():
                with delayed():
                    self._end(job, child)

    def _end(self, job: Job, child: Child) -> None:
        del self.running[job]
        child.close()
        if child.process.returncode == Refused.exit_status and owner_of(job.folder):
            self.waiting.insert(0, job)  # a run of an earlier sweep has locked its folder meanwhile
        else:
            self.ends[job.number] = child.end(self.timeout_seconds)
            self.on_end(job, self.ends[job.number])
        self.places.leave(job)

    def stop(self) -> None:
        """Ask each running job once to save and stop, and wait for all."""
        if self.running:
            say(f"stopping {plural(len(self.running), 'job')}: each saves and ends")
        for child in self.running.values():
            child.ask_to_stop(GRACE_SECONDS)
        while self.running:
            self.collect_ends()
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """A signal raises an exception while inside, in a worker of another launcher too."""
    if listener.previous or threading.current_thread() is not threading.main_thread():
        yield  # run_train.py does it already; in other threads, Python allows no handlers
        return
    try:
        with raised():
            yield
    finally:
        listener.stop_listening()
