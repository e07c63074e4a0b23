"""What a person sees: a panel before, one line during, a panel after; plain lines in a pipe."""

import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from llm.errors import printable
from llm.terminal import unfiltered
from llm.units import format_bytes

Row = dict[str, float | int | None]
BAR = 12  # characters
APART = 100  # steps; warnings of one kind that are further apart are shown one by one
QUIET = 15.0  # seconds without a line, after which a pipe is told what is going on


class Screen(Console):
    """A console that sends a terminal no escape sequences but rich's own."""

    def _of_terminal(self) -> IO[str]:
        found: IO[str] = unfiltered(Console.file.fget(self))  # type: ignore[attr-defined]
        return found

    def _to_another(self, file: IO[str]) -> None:
        self._file = file

    file = property(_of_terminal, _to_another)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Called by rich with everything that it shows, and with all parts of it."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else lines_of(text), style, control)

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the process here. A plan goes on, to its exit status."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = Screen(highlight=False, soft_wrap=True)
log = logging.getLogger("llm")


def warn(message: str) -> None:
    """One line on the screen and in the log."""
    if log.hasHandlers():  # else Python would print it a second time
        log.warning(message)
    console.print(f"warning: {printable(message)}", style="yellow", markup=False)


def say(message: str) -> None:
    """A line on the screen; brackets in it, as in ``betas=[0.9,0.99]``, are no markup."""
    console.print(printable(message), markup=False)


def lines_of(text: str) -> str:
    """Text of a model or of a stranger's file, of several lines perhaps, without escape codes."""
    return printable(text, keep="\n\t", longest=None)


def title(text: str) -> None:
    """A line across the screen with ``text`` in it."""
    console.rule(Text(lines_of(text)))


def panel(title: str, facts: dict[str, str]) -> None:
    """A box of names and values, and the same lines in the run's log."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(lines_of(value)))
        log.info("%s: %s", name, value)
    console.print(Panel(grid, title=title, title_align="left", expand=False))


class StepLine(Progress):
    """One line: the step and the time left, then as many numbers as there is room for."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Called by rich whenever it draws."""
        for task in self.tasks:  # one, but for the moment before it is added
            left, (first, *others) = task.time_remaining, task.fields["numbers"] or [""]
            parts = [
                f"step {task.completed:.0f}/{task.total:.0f}",
                f"eta {duration(left)}" if left is not None else "",
                task.fields["doing"], task.fields["repeated"], first, " " * BAR, *others,
            ]  # fmt: skip
            shown = fitting([part for part in parts if part], self.console.width)
            cells: list[RenderableType] = [Text(part) for part in shown if part.strip()]
            if " " * BAR in shown:
                cells.insert(0, ProgressBar(task.total, task.completed, width=BAR))
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_row(*cells)
            yield grid


def fitting(parts: Sequence[str], width: int) -> list[str]:
    """The first ``parts``, as many as fit into ``width`` with two spaces between them."""
    ends = list(accumulate(len(part) + 2 for part in parts))
    return [part for part, end in zip(parts, ends, strict=True) if end - 2 <= width]


class TrainingScreen:
    """The progress of one run. Entered for the time of the loop."""

    def __init__(self, max_steps: int, start: int = 0) -> None:
        self.max_steps, self.step = max_steps, start
        self.live = console.is_terminal
        self.bar = StepLine(console=console, speed_estimate_period=60, disable=not self.live)
        self.task = self.bar.add_task(
            "train", total=max_steps, completed=start, numbers=[], doing="", repeated=""
        )
        self.said = time.monotonic()  # when a line was printed last
        self.kind, self.times, self.last = "", 0, 0  # of the warning that repeats itself

    def __enter__(self) -> "TrainingScreen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_repetition()
        self.bar.stop()

    def tick(self, step: int) -> None:
        """Move the bar."""
        self.step = step
        self.bar.update(self.task, completed=step, doing="")
        if self.kind and step - self.last >= APART:
            self._end_repetition()

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say what takes time besides training, and how much is done. Empty: training again."""
        shown = f"{what} {done}/{total}" if total else what
        self.bar.update(self.task, doing=shown)
        if not self.live and what and time.monotonic() - self.said >= QUIET:
            self._print(f"step {self.step}/{self.max_steps}  {shown}")

    def warn(self, message: str, kind: str = "") -> None:
        """A warning, on the screen and in the log.

        Warnings of one ``kind`` may come step after step. All of them are in the log. The screen
        shows the first one and, once they have ended, how many followed it.
        """
        if not kind or kind != self.kind:
            self._end_repetition()
            warn(message)
        elif log.hasHandlers():
            log.warning(message)
        if kind:
            self.kind, self.times, self.last = kind, self.times + 1, self.step + 1
            repeated = f"{self.times} {kind}" if self.times > 1 else ""
            self.bar.update(self.task, repeated=repeated)

    def _end_repetition(self) -> None:
        if self.times > 1:
            told = f"{self.kind}: {self.times - 1} more until step {self.last} (all are in the log)"
            console.print(f"warning: {told}", style="yellow", markup=False)
        self.kind, self.times = "", 0
        self.bar.update(self.task, repeated="")

    def log(self, row: Row) -> None:
        """Show a row of metrics: in the bar, or as a line of its own."""
        self.bar.update(self.task, doing="")
        numbers = describe_row(row)
        line = f"step {row['step']:>{len(str(self.max_steps))}}/{self.max_steps}  {numbers}"
        log.info(line)
        if not self.live:
            left = self.bar.tasks[0].time_remaining
            self._print(line if left is None else f"{line}  eta {duration(left)}")
            return
        if "train/loss" in row:
            of_step = {key: value for key, value in row.items() if "val/" not in key}
            self.bar.update(self.task, numbers=numbers_of(of_step))
        if "val/loss" in row:
            values = {key: value for key, value in row.items() if "val/" in key}
            self._print(f"step {row['step']}  {describe_row(values)}")

    def sample(self, step: int, text: str) -> None:
        """Show what the model wrote."""
        log.info("sample at step %d: %s", step, text)
        shown = Text(lines_of(text.strip("\n")))
        console.print(Panel(shown, title=f"sample at step {step}", title_align="left"))

    def _print(self, line: str) -> None:
        self.said = time.monotonic()
        console.print(line)


def describe_row(row: Row) -> str:
    """``loss 2.1034  12,345 tok/s  mfu 41.0%  mem 1.2 GiB``, with what the row holds."""
    return "  ".join(numbers_of(row))


def numbers_of(row: Row) -> list[str]:
    """The same number by number, the most important first."""
    shown: dict[str, Callable[[float], str]] = {
        "train/loss": lambda v: f"loss {v:.4f}",
        "val/loss": lambda v: f"val loss {v:.4f}",
        "val/bits_per_byte": lambda v: f"{v:.3f} bits/byte",
        "sample/distinct_2": lambda v: f"distinct-2 {v:.2f}",
        "sample/longest_loop": lambda v: f"loop {v:.0f}",
        "lr": lambda v: f"lr {v:.2e}",
        "tokens_per_second": lambda v: f"{v:,.0f} tok/s",
        "mfu": lambda v: f"mfu {v:.1%}",
        "peak_memory_bytes": lambda v: f"mem {format_bytes(v)}",
    }
    return [form(value) for key, form in shown.items() if (value := row.get(key)) is not None]


@contextmanager
def status(what: str) -> Iterator[None]:
    """Say what is being waited for. A terminal shows it while it lasts; a pipe gets one line, and
    only if it lasts long.
    """
    if console.is_terminal:
        with Live(Spinner("dots", Text(lines_of(what))), console=console, transient=True):
            yield
        return
    # On standard error: standard output may be the result of the command.
    late = threading.Timer(QUIET, print, (f"{lines_of(what)} ...",), {"file": sys.stderr})
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over bytes with rate and time left; yields what to call with (done, total)."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    columns = (
        TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def count_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over things that are counted; yields what to call with (done, total)."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def jobs_table(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    """All jobs of a sweep, the lowest validation loss first: (overrides, summary) each."""
    table = Table(title="jobs", title_justify="left")
    for column in ("overrides", "status", "val loss", "parameters", "tok/s", "memory", "time"):
        table.add_column(
            column,
            overflow="fold",
            justify="left" if column in ("overrides", "status") else "right",
        )
    for loss, overrides, found in sorted(
        ((_loss(found), overrides, found) for overrides, found in jobs),
        key=lambda job: math.inf if job[0] is None else job[0],
    ):
        numbers = (found.get("parameters"), ","), (found.get("tokens_per_second"), ",.0f")
        shown = [(loss, ".4f"), *numbers]
        values = ["-" if value is None else f"{value:{form}}" for value, form in shown]
        memory = format_bytes(found["peak_memory_bytes"]) if found.get("peak_memory_bytes") else "-"
        seconds = duration(found["wall_seconds"]) if found.get("wall_seconds") else "-"
        short = " ".join(re.sub(r"^[\w.]+\.(?=\w+=)", "", word) for word in overrides.split(" "))
        said = [Text(lines_of(word)) for word in (short, str(found.get("status")))]
        table.add_row(*said, *values, memory, seconds)
    console.print(table)


def _loss(found: dict[str, Any]) -> float | None:
    """The best validation loss of a job; None where there is none to rely on."""
    loss: float | None = found.get("best_val_loss")
    return None if found.get("status") == "diverged" else loss


def duration(seconds: float) -> str:
    """``42s``, ``3m 12s``, ``5h 07m``."""
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {left:02d}s" if minutes else f"{left}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"
