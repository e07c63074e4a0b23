"""The screen of a sweep: a live table or, in a pipe, a line per change; a table at the end.

A thread of its own reads the folders of the jobs, because a launcher of another package blocks the
main thread until all jobs have ended.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

from llm.commands import command_line, for_shell
from llm.experiment import console as output
from llm.experiment.console import duration, log, say, warn
from llm.experiment.sweep_csv import SUMMARY_CSV, rows_of, write_csv
from llm.experiment.sweep_table import SweepTable
from llm.experiment.watch import FINISHED, RUNNING, STARTING, WAITING, Watched, words
from llm.units import plural

TERMINAL_SECONDS, PIPE_SECONDS = 0.5, 1.0  # between two looks at the folders
MAX_REASONS = 20  # lines at the end about jobs that did not finish
STUCK = 10.0  # seconds to wait for the thread at the end, if a terminal or a disk hangs


class SweepScreen:
    """Shows the jobs of a sweep; a context manager around the call of the launcher.

    ``jobs``: all jobs of this command in their order, also those it skips. ``at_once``: how many
    run together. ``folder``: of the sweep, for ``summary.csv``. ``others``: jobs of earlier
    commands, for ``summary.csv`` only. At the end it prints the table of all jobs, the reasons of
    those that did not finish, where the results are and, if no job was interrupted or waits, the
    command that trains the best one longer.

    An error here becomes a warning: it must not end the sweep.
    """

    def __init__(
        self, jobs: Sequence[Watched], at_once: int, folder: Path, others: Sequence[Watched] = ()
    ) -> None:
        self.jobs, self.folder, self.others = jobs, folder, others
        self.table = SweepTable(folder.name, jobs, at_once)
        self.error: Exception | None = None  # the first error of the view
        self.is_live = output.console.is_terminal and not output.console.is_dumb_terminal
        self._live = Live(
            self, console=output.console, auto_refresh=False, transient=True,
            vertical_overflow="crop",
        )  # fmt: skip
        self._lines: list[Text] = []  # the last table without an error
        self._shown = [job.state for job in jobs]  # states that a line has reported
        self._written: list[str] | None = None  # states in summary.csv
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="sweep screen")

    def __enter__(self) -> Self:
        self._refresh()
        ended = Counter(FINISHED if job.is_finished else job.state for job in self.jobs)
        for state in (WAITING, STARTING, RUNNING):
            del ended[state]
        if count := ended.total():
            how = ", ".join(f"{n} {words(state)}" for state, n in ended.items())
            say(f"{count} of {len(self.jobs)} jobs are skipped: {how}")
        self._shown = [job.state for job in self.jobs]
        try:
            if self.is_live:
                self._live.start(refresh=True)
            self._thread.start()
        except BaseException:
            self._live.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            self._thread.join(STUCK)
        finally:
            self._live.stop()
        self._look()
        for job in self.jobs:
            if job.state in (STARTING, RUNNING):  # nobody has written how it ended
                job.ended("killed")
        self._look()
        self._guarded(self._show_end)
        if self.error is not None:
            warn(f"the view of the sweep failed: {type(self.error).__name__}: {self.error}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Called by rich to draw the table, also from the main thread when it prints."""
        self._guarded(self._draw, options.max_width, console.size.height - 1, options.encoding)
        yield from self._lines

    def _draw(self, width: int, height: int, encoding: str) -> None:
        self._lines = self.table.live(width, height, encoding)

    def _watch(self) -> None:
        while not self._stop.wait(TERMINAL_SECONDS if self.is_live else PIPE_SECONDS):
            self._look()
            if self.is_live:
                self._guarded(self._live.refresh)

    def _look(self) -> None:
        self._refresh()
        if not self.is_live:
            self._guarded(self._print_changes)
        self._guarded(self._write_csv)

    def _refresh(self) -> None:
        for job in (*self.jobs, *self.others):
            self._guarded(job.refresh)

    def _guarded(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as error:
            if self.error is None:
                self.error = error
                log.exception("the view of the sweep failed")

    def _print_changes(self) -> None:
        for number, job in enumerate(self.jobs):
            state = RUNNING if job.state == STARTING else job.state
            before, self._shown[number] = self._shown[number], state
            if state == before or not (job.has_ended or state == RUNNING):
                continue
            line = f"job {number + 1} of {len(self.jobs)}  {self.table.label(job)}: "
            say(line + ", ".join([words(state), *_details(job)]))

    def _write_csv(self) -> None:
        states = [job.state if job.has_ended else "" for job in self.jobs]
        if states != self._written or self._stop.is_set():
            self._written = states
            write_csv(self.folder, rows_of([*self.jobs, *self.others]))

    def _show_end(self) -> None:
        screen = output.console
        # A pipe has no width, so nothing needs to be cut there.
        width = screen.width if screen.is_terminal else None
        for line in self.table.final(width, screen.encoding):
            screen.print(line)
        failed = [job for job in self.jobs if job.has_ended and not job.is_finished]
        for job in failed[:MAX_REASONS]:
            reason = f": {job.reason}" if job.reason else ""
            say(f"{self.table.label(job)}: {words(job.state)}{reason}")
        if more := len(failed[MAX_REASONS:]):
            say(f"{more} more did not finish: see {self.folder / SUMMARY_CSV}")
        if waiting := sum(job.state == WAITING for job in self.jobs):
            say(f"{plural(waiting, 'job')} did not start")
        say(f"csv:  {self.folder / SUMMARY_CSV}")
        if (self.folder / "wandb").is_dir():
            say(f"W&B:  wandb sync {for_shell([str(self.folder)])}/wandb")
        unfinished = any(job.state in (WAITING, "interrupted") for job in self.jobs)
        best = self.table.best(finished=True)  # of the whole sweep, so not before its end
        if not unfinished and best is not None and (command := longer(best)):
            say(f"to train the best one twice as long: {command}")


def _details(job: Watched) -> list[str]:
    """What a line says about a job besides its state."""
    details = []
    if job.state == FINISHED:
        details += [] if job.best is None else [f"val loss {job.best:.4f}"]
    elif job.reason:
        details.append(job.reason)
    if job.has_ended and job.seconds:
        details.append(duration(job.seconds))
    return details


def longer(job: Watched) -> str | None:
    """The command that trains a finished job twice as long; None if its length is unknown."""
    steps = job.forecast.max_steps if job.forecast else job.number("step")
    minutes = job.forecast.minutes if job.forecast else None
    return train_longer(str(job.folder), steps, minutes)


def train_longer(folder: str, steps: float | None, minutes: float | None) -> str | None:
    """The command that trains a run twice as long as its budget; None if both are unknown."""
    budgets = {"trainer.max_steps": steps, "trainer.max_minutes": minutes}
    doubled = [f"{key}={_plain(2 * value)}" for key, value in budgets.items() if value]
    if not doubled:
        return None
    return command_line("run_train.py", f"resume={folder}", *doubled)


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
