"""The screen: a panel before training, one line during it, a panel after; plain lines in a pipe."""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Self, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llm.errors import as_line, printable
from llm.training.logger import Row, T
from llm.units import format_bytes

BAR = 12  # characters
QUIET = 15.0  # seconds without output, after which a pipe gets a line about the work in progress


class Screen(Console):
    """A console that escapes control characters in text: only rich may send them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Called by rich for everything it shows."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)

    @property
    def is_terminal(self) -> bool:
        """Whether lines can be rewritten. A notebook says so, too, but cannot move the cursor."""
        return super().is_terminal and not type(sys.stdout).__module__.startswith("ipykernel")

    @property
    def file(self) -> IO[str]:
        """Called by rich for the stream to write to.

        While a live line or table is shown, rich's proxy wraps the one of :mod:`llm.terminal`. rich
        unwraps only its own, and the other would escape the codes that move the cursor.
        """
        file = super().file
        return cast(IO[str], getattr(file, "rich_proxied_file", file))

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def on_broken_pipe(self) -> None:
        """Called by rich when the reader of a pipe has exited. Rich's own method exits as well."""


# In a notebook, rich would need widgets for a progress bar: plain lines, as in a pipe.
console = Screen(highlight=False, soft_wrap=True, force_jupyter=False)
log = logging.getLogger("llm")
log.addHandler(logging.NullHandler())  # else Python prints warnings while no log file is open


def warn(message: str) -> None:
    """One line on the screen and in the log."""
    log.warning(message)
    _show_warning(message)


def _show_warning(message: str) -> None:
    # The style of the text alone: print(style=...) colours a live table below it too.
    console.print(Text(f"warning: {as_line(message)}", style="yellow"))


def say(message: str) -> None:
    """One line on the screen."""
    console.print(as_line(message), markup=False)


def say_sentence(message: str) -> None:
    """Text on the screen, wrapped at words on a terminal. Not for paths and commands to copy."""
    console.print(as_line(message), markup=False, soft_wrap=not console.is_terminal)


def title(text: str) -> None:
    """A line across the screen with ``text`` in it."""
    console.rule(Text(text))


def panel(title: str, facts: dict[str, str]) -> None:
    """A box of names and values, and the same lines in the run's log."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
        log.info("%s: %s", name, value)
    console.print(Panel(grid, title=title, title_align="left", expand=False))


class Numbers(ProgressColumn):
    """The time left and the newest numbers, cut at the end of the line."""

    def render(self, task: Task) -> Text:
        """Called by rich to draw this column."""
        left = task.time_remaining
        parts = [f"eta {duration(left)}"] if left is not None else []
        parts += [text for text in (task.fields["doing"], task.fields["numbers"]) if text]
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")


class TrainingScreen:
    """The progress of one run; a context manager around its loop."""

    def __init__(self, max_steps: int | None, start: int = 0) -> None:
        self.max_steps, self.step = max_steps, start
        self.time = ""  # used, and the budget, until the number of steps is decided
        self.is_live = console.is_terminal
        self.bar = Progress(
            TextColumn("{task.fields[place]}"), BarColumn(BAR), Numbers(),
            console=console, speed_estimate_period=60, disable=not self.is_live,
        )  # fmt: skip
        self.task = self.bar.add_task(
            "", total=max_steps, completed=start, place=self._place(start), numbers="", doing=""
        )
        self.last_line = time.monotonic()
        self.warnings: Counter[str] = Counter()  # by kind

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tick(self, step: int) -> None:
        """Show that ``step`` is done."""
        self.step = step
        self.bar.update(self.task, place=self._place(step), doing="")
        if self.max_steps is not None:
            self.bar.update(self.task, completed=step)

    def timed(self, seconds: float, budget: float) -> None:
        """Show how much of its budget a run has used whose number of steps is not decided yet."""
        self.time = f"  {duration(seconds)} of {duration(budget)}"
        self.bar.update(self.task, completed=seconds, total=budget, place=self._place(self.step))

    def ends_at(self, max_steps: int, message: str = "") -> None:
        """From now on show steps of ``max_steps``; ``message`` says how that was decided."""
        self.max_steps, self.time = max_steps, ""
        self.bar.reset(self.task, total=max_steps, completed=self.step)
        self.bar.update(self.task, place=self._place(self.step))
        if message:
            log.info(message)
            self._print(message)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """While inside, show that the run does ``what`` instead of training."""
        self._show(what)
        yield
        self._show("")

    def each(self, what: str, items: Iterable[T], count: int = 0) -> Iterator[T]:
        """Yield ``items`` and show how many of them are done."""
        for done, item in enumerate(items):
            self._show(f"{what} {done}/{count}" if count else what)
            yield item
        self._show("")

    def _show(self, doing: str) -> None:
        self.bar.update(self.task, doing=doing)
        if not self.is_live and doing and time.monotonic() - self.last_line >= QUIET:
            self._print(f"{self._place(self.step)}  {doing}")

    def warn(self, message: str, kind: str = "") -> None:
        """A warning, on the screen and in the log.

        A ``kind`` of warning may repeat at every step. The log gets all of them, the screen the
        first, second, fourth, eighth ...
        """
        log.warning(message)
        self.warnings[kind] += 1
        count = self.warnings[kind]
        if kind and count > 1:
            message += f" ({count} of this kind so far; all are in the log)"
        is_power_of_two = count & (count - 1) == 0
        if is_power_of_two or not kind:
            _show_warning(message)

    def log(self, row: Row) -> None:
        """Show a row of metrics: in the bar, or as a line."""
        self.bar.update(self.task, doing="")
        width = len(str(self.max_steps or ""))
        line = f"{self._place(int(row['step'] or 0), width)}  {describe_row(row)}"
        log.info(line)
        if not self.is_live:
            left = self.bar.tasks[0].time_remaining
            self._print(line if left is None else f"{line}  eta {duration(left)}")
            return
        if "train/loss" in row:
            training = {key: value for key, value in row.items() if "val/" not in key}
            self.bar.update(self.task, numbers=describe_row(training))
        if "val/loss" in row:
            validation = {key: value for key, value in row.items() if "val/" in key}
            self._print(f"step {row['step']}  {describe_row(validation)}")

    def _place(self, step: int, width: int = 0) -> str:
        """``step 12/400``, or ``step 120  1m 12s of 5m 00s``"""
        total = "" if self.max_steps is None else f"/{self.max_steps}"
        return f"step {step:>{width}}{total}{self.time}"

    def show_sample(self, step: int, text: str) -> None:
        """Text that the model wrote, in a box."""
        log.info("sample at step %d: %s", step, text)
        shown = Text(text.strip("\n"))
        console.print(Panel(shown, title=f"sample at step {step}", title_align="left"))

    def _print(self, line: str) -> None:
        self.last_line = time.monotonic()
        console.print(line)


def describe_row(row: Row) -> str:
    """``loss 2.1034  12,345 tok/s  mfu 41.0%  mem 1.20 GiB``, the most important numbers first."""
    formats: dict[str, Callable[[float], str]] = {
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
    parts = [form(value) for key, form in formats.items() if (value := row.get(key)) is not None]
    return "  ".join(parts)


@contextmanager
def status(what: str) -> Iterator[None]:
    """While inside, show that ``what`` is happening; in a pipe only if it takes long."""
    if console.is_terminal:
        with console.status(Text(what)):
            yield
        return
    # On standard error, because the result of the command may go to standard output.
    late = threading.Timer(QUIET, print, (f"{as_line(what)} ...",), {"file": sys.stderr})
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


@contextmanager
def _progress(title: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    live = console.is_terminal
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *columns,
        console=console, transient=True, disable=not live,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=None)  # rich would show a total of 100 until it is known
        yield lambda done, total: bar.update(task, completed=done, total=total)


def byte_progress(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """A progress bar over bytes; yields a function to call with (done, total)."""
    return _progress(
        title, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), TimeElapsedColumn()
    )


def count_progress(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """A progress bar over items; yields a function to call with (done, total)."""
    return _progress(title, MofNCompleteColumn(), TimeRemainingColumn())


def duration(seconds: float) -> str:
    """``42s``, ``3m 12s``, ``5h 07m``."""
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {left:02d}s" if minutes else f"{left}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"
