"""What a person sees: a panel before, one line during, a panel after; plain lines in a pipe."""

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llm.errors import printable
from llm.terminal import unfiltered

Row = dict[str, float | int | None]


class Screen(Console):
    """Shows nothing that a terminal would obey, but for what rich itself makes for it."""

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


class TrainingScreen:
    """The progress of one run. Entered for the time of the loop."""

    def __init__(self, max_steps: int, start: int = 0) -> None:
        self.max_steps, self.start = max_steps, start
        self.live = console.is_terminal
        columns: Iterable[str | ProgressColumn] = (
            TextColumn("train"), BarColumn(bar_width=20), MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"), TextColumn("eta"),
            TimeRemainingColumn(compact=True),
        )  # fmt: skip
        self.bar = Progress(
            *columns, console=console, speed_estimate_period=60, disable=not self.live
        )
        self.task = self.bar.add_task("train", total=max_steps, completed=start, numbers="")

    def __enter__(self) -> "TrainingScreen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tick(self, step: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step)

    def log(self, row: Row) -> None:
        """Show a row of metrics: in the bar, or as a line of its own."""
        numbers = describe_row(row)
        line = f"step {row['step']:>{len(str(self.max_steps))}}/{self.max_steps}  {numbers}"
        log.info(line)
        if not self.live:
            left = self.bar.tasks[0].time_remaining
            console.print(line if left is None else f"{line}  eta {duration(left)}")
            return
        if "train/loss" in row:
            self.bar.update(
                self.task, numbers=describe_row({k: v for k, v in row.items() if "val/" not in k})
            )
        if "val/loss" in row:
            values = {key: value for key, value in row.items() if "val/" in key}
            console.print(f"step {row['step']}  {describe_row(values)}")

    def sample(self, step: int, text: str) -> None:
        """Show what the model wrote."""
        log.info("sample at step %d: %s", step, text)
        console.print(
            Panel(
                Text(lines_of(text.strip("\n"))), title=f"sample at step {step}", title_align="left"
            )
        )


def describe_row(row: Row) -> str:
    """``loss 2.1034  12,345 tok/s  mfu 41.0%  mem 1.2 GiB``, with what the row holds."""
    shown: dict[str, Callable[[float], str]] = {
        "train/loss": lambda v: f"loss {v:.4f}",
        "val/loss": lambda v: f"val loss {v:.4f}",
        "val/bits_per_byte": lambda v: f"{v:.3f} bits/byte",
        "sample/distinct_2": lambda v: f"distinct-2 {v:.2f}",
        "sample/longest_loop": lambda v: f"loop {v:.0f}",
        "lr": lambda v: f"lr {v:.2e}",
        "tokens_per_second": lambda v: f"{v:,.0f} tok/s",
        "mfu": lambda v: f"mfu {v:.1%}",
        "peak_memory_bytes": lambda v: f"mem {gib(v)}",
    }
    return "  ".join(
        form(value) for key, form in shown.items() if (value := row.get(key)) is not None
    )


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
        memory = gib(found["peak_memory_bytes"]) if found.get("peak_memory_bytes") else "-"
        seconds = duration(found["wall_seconds"]) if found.get("wall_seconds") else "-"
        short = " ".join(re.sub(r"^[\w.]+\.(?=\w+=)", "", word) for word in overrides.split(" "))
        said = [Text(lines_of(word)) for word in (short, str(found.get("status")))]
        table.add_row(*said, *values, memory, seconds)
    console.print(table)


def _loss(found: dict[str, Any]) -> float | None:
    """The best validation loss of a job; None where there is none to rely on."""
    loss: float | None = found.get("best_val_loss")
    return None if found.get("status") == "diverged" else loss


def gib(count: float) -> str:
    """Bytes as KiB, MiB or GiB."""
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """``42s``, ``3m 12s``, ``5h 07m``."""
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {left:02d}s" if minutes else f"{left}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"
