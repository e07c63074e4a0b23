"""The jobs of a sweep as their folders show them, whichever launcher runs them, and the time left.

A job is watched through the files that its run writes: ``metrics.jsonl`` grows by a row at a time,
``.lock`` exists while the run writes to its folder, and ``summary.json`` says how it ended.
"""

import heapq
import math
import os
import time
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.experiment.rundir import METRICS, SUMMARY, read_summary
from llm.experiment.tail import Metrics, number
from llm.lock import LOCK
from llm.sealed import Plain

# States of a job. A job that has ended has the status of its summary.json instead: interrupted,
# killed, diverged, out_of_memory, refused, disk_error or failed.
WAITING, STARTING, RUNNING, FINISHED = "waiting", "starting", "running", "finished"
SKIPPED = "skipped"  # finished before this command
STATUSES = (
    FINISHED, "interrupted", "killed", "diverged", "out_of_memory", "refused", "disk_error",
    "failed",
)  # fmt: skip
Stamp = tuple[int, int, int]  # of a file: time, inode and size
# Keys of metrics.jsonl by those of summary.json, where they differ.
ROW_KEYS = {"val_loss": "val/loss", "bits_per_byte": "val/bits_per_byte"}


def words(state: str) -> str:
    """``out of memory`` for ``out_of_memory``."""
    return state.replace("_", " ")


@dataclass(frozen=True)
class Forecast:
    """What is known about a job before it starts."""

    parameters: int
    max_steps: int | None  # None: the job has a budget in minutes
    tokens: int | None  # to train on; None: the job has a budget in minutes
    minutes: float | None  # trainer.max_minutes
    flops_per_token: float  # forward and backward
    peak: int  # predicted bytes
    budget: int  # bytes that the job may take
    fits: bool  # with the changes that memory.fit=auto makes


class Rates:
    """Speeds measured on some jobs of a sweep, to estimate the time of the others.

    ``measured``: pairs of ``flops_per_token`` and FLOP/s. Large networks use a device better than
    small ones, so a job is assumed to be as fast as the measured job whose ``flops_per_token`` is
    nearest, by ratio. ``overhead``: seconds of a job besides training (imports, evaluation, saves).
    """

    def __init__(self, measured: Iterable[tuple[float, float]] = (), overhead: float = 0.0) -> None:
        by_size: dict[float, list[float]] = {}
        for flops_per_token, flops_per_second in measured:
            if flops_per_token > 0 and flops_per_second > 0:
                by_size.setdefault(math.log(flops_per_token), []).append(flops_per_second)
        self.sizes = sorted(by_size)
        self.speeds = [sum(by_size[size]) / len(by_size[size]) for size in self.sizes]
        self.overhead = overhead

    def flops_per_second(self, flops_per_token: float) -> float | None:
        """The speed to expect of a job; None if nothing was measured."""
        if not self.sizes or flops_per_token <= 0:
            return None
        size = math.log(flops_per_token)
        place = bisect(self.sizes, size)
        neighbours = range(max(place - 1, 0), min(place + 1, len(self.sizes)))
        return self.speeds[min(neighbours, key=lambda one: abs(self.sizes[one] - size))]

    def train_seconds(self, forecast: Forecast, tokens: float = 0) -> float | None:
        """Seconds that a job still has to train after ``tokens`` tokens; None if unknown.

        A budget in minutes alone counts from the start of the job.
        """
        if forecast.tokens is None:
            return None if forecast.minutes is None else 60 * forecast.minutes
        speed = self.flops_per_second(forecast.flops_per_token)
        limit = math.inf if forecast.minutes is None else 60 * forecast.minutes
        if speed is None:
            return None
        return min(limit, max(0, forecast.tokens - tokens) * forecast.flops_per_token / speed)

    def seconds(self, forecast: Forecast) -> float | None:
        """Seconds of a whole job, with its overhead; None if unknown."""
        training = self.train_seconds(forecast)
        return None if training is None else training + self.overhead


def estimate(seconds: Iterable[float | None], at_once: int = 1) -> float | None:
    """Seconds until all jobs have ended; None if the time of one is unknown.

    ``seconds``: of each unfinished job, in the order in which the jobs start, the running ones
    first. ``at_once``: how many run together; the next job starts when one of them ends.

    For a plan: ``estimate((rates.seconds(forecast) for forecast in forecasts), at_once)``.
    """
    workers = [0.0] * max(1, at_once)  # when each becomes free
    for one in seconds:
        if one is None:
            return None
        heapq.heapreplace(workers, workers[0] + one)
    return max(workers)


class Watched:
    """One job: its state and its newest numbers, after each :meth:`refresh`.

    ``values``: of the keys that vary over the sweep. Make it before the job can start: a summary
    or a lock that is already there was left by an earlier command. ``will_run=False``: this command
    does not run the job, so the summary that is there counts.
    """

    def __init__(
        self, folder: Path, values: dict[str, str], forecast: Forecast | None = None,
        will_run: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.values = folder, values
        self.forecast, self.will_run = forecast, will_run
        self.state, self.reason = WAITING, ""
        self.summary: Plain = {}  # of a job that has ended
        self.metrics = Metrics(folder / METRICS)
        self._is_started = False
        self._end: tuple[str, str] | None = None  # status and reason, from the launcher
        self._paths = str(folder / SUMMARY), str(folder / LOCK)
        self._old_summary, self._old_lock = map(_stamp, self._paths)
        self._read: Stamp | None = None  # of the file that self.summary was read from
        self._began = 0.0  # when the run locked its folder
        # A run adds the seconds of earlier commands to its own.
        before = (read_summary(folder) or {}) if will_run else {}
        self._trained = number(before, "train_seconds") or 0.0
        self._took = number(before, "wall_seconds") or 0.0

    def started(self) -> None:
        """Called by a launcher that knows when it starts the job."""
        self._is_started, self._end = True, None

    def ended(self, status: str = "", reason: str = "") -> None:
        """Called by a launcher that knows that the job has ended.

        ``status`` and ``reason`` count if the job has left no new summary. Without a status, a
        summary of an earlier command counts too: the job had nothing left to do.
        """
        self._end = status, reason

    def refresh(self) -> None:
        """Read what has changed in the job's folder since the last call."""
        summary, lock = map(_stamp, self._paths)
        takes_old = not self.will_run or self._end == ("", "")
        if summary is None or (summary == self._old_summary and not takes_old):
            self.summary, self._read = {}, None
        elif summary != self._read:
            read = read_summary(self.folder) or {}
            self.summary, self._read = read if read.get("status") in STATUSES else {}, summary
            if self.will_run:
                self.metrics.refresh()  # the last rows
        if self.summary.get("step") is None:  # it runs, or was killed and left no numbers
            self.metrics.refresh()
        self.state, self.reason = self._state(lock)

    def _state(self, lock: Stamp | None) -> tuple[str, str]:
        if self.summary:
            status = str(self.summary["status"])
            is_earlier = status == FINISHED and not self.will_run
            return SKIPPED if is_earlier else status, str(self.summary.get("reason") or "")
        if self._end is not None:
            return self._end[0] or "failed", self._end[1] or f"it left no {SUMMARY}"
        if lock is not None and lock != self._old_lock:
            self._began = lock[0] / 1e9
            return RUNNING, ""
        return STARTING if self._is_started else WAITING, ""

    @property
    def has_ended(self) -> bool:
        """Whether the job is neither waiting nor running."""
        return self.state not in (WAITING, STARTING, RUNNING)

    @property
    def is_finished(self) -> bool:
        """Whether the job has finished, in this command or before."""
        return self.state in (FINISHED, SKIPPED)

    @property
    def is_comparable(self) -> bool:
        """Whether its loss compares with the others: ``resume=`` has not trained it longer."""
        last = self.forecast.max_steps if self.forecast else None
        return not last or (self.number("step") or 0) <= last

    def number(self, key: str) -> float | None:
        """A number of the job by its key in ``summary.json``; None if unknown."""
        known = number(self.summary, key)
        if known is None:
            known = self.metrics.numbers.get(ROW_KEYS.get(key, key))
        if known is None and key == "parameters" and self.forecast:
            return self.forecast.parameters
        if known is None and key == "predicted_memory_bytes" and self.forecast:
            return self.forecast.peak
        return known

    @property
    def loss(self) -> float | None:
        """The last training loss."""
        return self.metrics.numbers.get("train/loss")

    @property
    def best(self) -> float | None:
        """The lowest validation loss; None for a job that has diverged."""
        return None if self.state == "diverged" else self.number("best_val_loss")

    @property
    def seconds(self) -> float | None:
        """Wall seconds of the job, with those of earlier commands; None before it starts."""
        if self.state == RUNNING:
            return self._took + max(0.0, time.time() - self._began)
        return self.number("wall_seconds")

    def seconds_left(self, rates: Rates) -> float | None:
        """Seconds until the job ends, from its own speed or else from ``rates``; None if unknown.

        The share of the overhead that is left is the share of the training that is left.
        """
        if self.has_ended:
            return 0.0
        if self.forecast is None:
            return None
        left, share = self._train_seconds_left(self.forecast, rates), 1.0
        if self.forecast.minutes is not None:
            limit = 60 * self.forecast.minutes
            running = time.time() - self._began if self.state == RUNNING else 0.0
            clock = min(limit, max(0.0, limit - self._trained - running))
            if left is None or clock < left:
                left, share = clock, clock / limit
        if self.forecast.tokens:
            share = min(share, max(0.0, 1 - (self.number("tokens") or 0.0) / self.forecast.tokens))
        return None if left is None else left + share * rates.overhead

    def _train_seconds_left(self, forecast: Forecast, rates: Rates) -> float | None:
        tokens = self.number("tokens") or 0.0
        speed = self.number("tokens_per_second") if self.state == RUNNING else None
        if forecast.tokens is None or not speed:
            return rates.train_seconds(forecast, tokens)
        since_row = max(0.0, time.time() - max(self._began, self.metrics.time))
        return max(0.0, (forecast.tokens - tokens) / speed - since_row)


def rates_of(jobs: Iterable[Watched]) -> Rates:
    """The speeds and the mean overhead of the jobs that run or have run."""
    speeds, overheads = [], []
    for job in jobs:
        speed = job.number("tokens_per_second")
        if job.forecast and speed:
            speeds.append((job.forecast.flops_per_token, job.forecast.flops_per_token * speed))
        trained, took = (number(job.summary, key) for key in ("train_seconds", "wall_seconds"))
        if job.is_finished and trained is not None and took is not None:
            overheads.append(max(0.0, took - trained))
    return Rates(speeds, sum(overheads) / len(overheads) if overheads else 0.0)


def sweep_seconds_left(jobs: Sequence[Watched], rates: Rates, at_once: int) -> float | None:
    """Seconds until all jobs have ended; None if unknown."""
    unfinished = [job for job in jobs if not job.has_ended]
    unfinished.sort(key=lambda job: job.state == WAITING)
    return estimate((job.seconds_left(rates) for job in unfinished), at_once)


def _stamp(path: str) -> Stamp | None:
    """Time, inode and size of a file: one changes with each write. None without a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
