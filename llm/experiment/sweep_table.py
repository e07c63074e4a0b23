"""The table of a sweep's jobs, fitted to the width and the height of a terminal."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from llm.errors import printable
from llm.experiment.cells import cut, encodable, wrapped
from llm.experiment.columns import Filled, table_lines
from llm.experiment.console import duration
from llm.experiment.watch import (
    FINISHED,
    RUNNING,
    SKIPPED,
    STARTING,
    STATUSES,
    WAITING,
    Rates,
    Watched,
    rates_of,
    sweep_seconds_left,
    words,
)
from llm.units import format_bytes

STYLES = {
    WAITING: "dim", STARTING: "cyan", RUNNING: "bold cyan", FINISHED: "green", SKIPPED: "green",
    "interrupted": "yellow",
}  # fmt: skip
ENDED_BADLY = "red"
LONGEST_HEADING_LABEL, LONGEST = 40, 999  # cells
MAX_ROWS = 50  # of the table at the end


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``width``: its least width, so that it seldom moves."""

    title: str
    cell: Callable[[Watched], Text | str]
    width: int = 0
    justify: Literal["left", "right"] = "right"


class SweepTable:
    """The jobs of a sweep as lines of text. ``at_once``: how many run together."""

    def __init__(self, name: str, jobs: Sequence[Watched], at_once: int) -> None:
        self.name, self.jobs, self.at_once = name, jobs, at_once
        names = labels([job.values for job in jobs])
        self.labels = {id(job): name for job, name in zip(jobs, names, strict=True)}

    def live(self, width: int, height: int, encoding: str = "utf-8") -> list[Text]:
        """The table while the sweep runs: at most ``height`` lines of ``width`` cells."""
        rates = rates_of(self.jobs)
        lines = wrapped(self.heading(rates), width, encoding)[:height]
        room = height - len(lines) - 1  # below the titles
        if room > 0:
            best = self.best()
            columns = [
                _STATE,
                Column("step", _step),
                Column("loss", lambda job: _loss(job.loss), 6),
                Column("best", lambda job: _marked(job, best), 7),
                Column("peak", _peak),
                Column("tok/s", lambda job: _count(job.number("tokens_per_second")), 6),
                Column("parameters", lambda job: _count(job.number("parameters"))),
                Column("time", lambda job: _time(job.seconds), 6),
                Column("eta", lambda job: _eta(job, rates), 6),
            ]
            shown, rest = choose(self.jobs, room)
            dropped = (
                "parameters",
                "time",
                "tok/s",
                "peak",
                "loss",
                "eta",
                "best",
                "step",
                "state",
            )
            lines += self._lines(shown, columns, dropped, width, encoding)
            if rest:
                lines.append(Text(inwords(rest, width), "dim"))
        return lines

    def final(self, width: int | None, encoding: str = "utf-8") -> list[Text]:
        """The table at the end, by validation loss; ``width=None``: as wide as needed."""
        best = self.best(finished=True)
        columns = [
            _STATE,
            Column("best val loss", lambda job: _marked(job, best), 7),
            Column("step", lambda job: _count(job.number("step"))),
            Column("parameters", lambda job: _count(job.number("parameters"))),
            Column("tok/s", lambda job: _count(job.number("tokens_per_second"))),
            Column("peak", _peak),
            Column("time", lambda job: _time(job.seconds)),
        ]
        jobs = by_loss(self.jobs)
        dropped = ("step", "tok/s", "peak", "time", "parameters", "best val loss", "state")
        lines = self._lines(jobs[:MAX_ROWS], columns, dropped, width, encoding)
        if rest := jobs[MAX_ROWS:]:
            lines.append(Text(inwords(rest, width), "dim"))
        return lines

    def heading(self, rates: Rates) -> str:
        """``sweep width_depth: 12 of 200 finished, 2 running, 1 failed, eta 1h 20m, best ...``"""
        counts = Counter(job.state for job in self.jobs)
        parts = [f"{counts[FINISHED] + counts[SKIPPED]} of {len(self.jobs)} finished"]
        states = (RUNNING, STARTING, *STATUSES[1:])
        parts += [f"{counts[one]} {words(one)}" for one in states if counts[one]]
        if not all(job.has_ended for job in self.jobs):
            left = sweep_seconds_left(self.jobs, rates, self.at_once)
            parts += [] if left is None else [f"eta {duration(left)}"]
        if (best := self.best()) is not None:
            name = cut(self.label(best), LONGEST_HEADING_LABEL)
            parts.append(f"best {_loss(best.best)} ({name})")
        return f"sweep {printable(self.name, keep='')}: {', '.join(parts)}"

    def label(self, job: Watched) -> str:
        """``n_layer=6``"""
        return self.labels[id(job)]

    def best(self, finished: bool = False) -> Watched | None:
        """The job with the lowest validation loss, of those that have finished or may still finish;
        ``finished``: only of those that have finished.
        """
        jobs = by_loss(
            job
            for job in self.jobs
            if job.is_comparable and (job.is_finished or not (finished or job.has_ended))
        )
        return jobs[0] if jobs and jobs[0].best is not None else None

    def _lines(
        self, jobs: Sequence[Watched], columns: Sequence[Column], dropped: Sequence[str],
        width: int | None, encoding: str,
    ) -> list[Text]:  # fmt: skip
        names = [encodable(self.label(job), encoding) for job in jobs]
        filled = [
            Filled(column.title, [_text(column.cell(job)) for job in jobs], column.width,
                   column.justify)
            for column in columns
        ]  # fmt: skip
        return table_lines("job", names, filled, dropped, width)


def labels(values: Sequence[dict[str, str]]) -> list[str]:
    """``n_layer=4`` for each ``model.n_layer=4``, unless two keys would become equal."""
    keys = dict.fromkeys(key for one in values for key in one)
    # The name of an option stands for its group: schedule=cosine for schedule.name=cosine.
    short = {key: key.removesuffix(".name").rpartition(".")[2].lstrip("+~") for key in keys}
    count = Counter(short.values())
    names = {key: short[key] if count[short[key]] == 1 else key for key in keys}
    joined = (" ".join(f"{names[key]}={value}" for key, value in one.items()) for one in values)
    return [printable(one, keep="") or "(no overrides)" for one in joined]


def by_loss(jobs: Iterable[Watched]) -> list[Watched]:
    """The jobs by their lowest validation loss; those without one come last."""
    return sorted(jobs, key=lambda job: (job.best is None, job.best or 0.0))


def choose(jobs: Sequence[Watched], room: int) -> tuple[list[Watched], list[Watched]]:
    """The jobs to show in ``room`` lines, and the rest, which takes one of these lines.

    First come the jobs that run, then those that ended badly, the best finished ones and those that
    wait. Jobs that ended badly leave half of the other lines to the finished ones.
    """
    if len(jobs) <= room:
        room += 1  # no line for the rest
    room -= 1
    running = [job for job in jobs if job.state in (RUNNING, STARTING)][:room]
    failed = [job for job in jobs if job.has_ended and not job.is_finished]
    finished = by_loss(job for job in jobs if job.is_finished)
    waiting = [job for job in jobs if job.state == WAITING]
    room -= len(running)
    half = max(room - len(finished), (room + 1) // 2)
    ordered = [*running, *failed[:half], *finished, *waiting, *failed[half:]]
    shown = ordered[: room + len(running)]
    known = set(map(id, shown))
    return shown, [job for job in jobs if id(job) not in known]


def inwords(rest: Sequence[Watched], width: int | None) -> str:
    """``... 171 more: 120 finished, 51 waiting``, without the counts that do not fit."""
    counts = Counter(FINISHED if job.is_finished else job.state for job in rest)
    text = cut(f"... {len(rest)} more", LONGEST if width is None else width)
    for number, (state, count) in enumerate(counts.most_common()):
        longer = f"{text}{', ' if number else ': '}{count} {words(state)}"
        if width is not None and len(longer) > width:
            break
        text = longer
    return text


def _text(cell: Text | str) -> Text:
    return Text(cell) if isinstance(cell, str) else cell


def _state(job: Watched) -> Text:
    return Text(words(job.state), STYLES.get(job.state, ENDED_BADLY))


_STATE = Column("state", _state, 8, "left")


def _step(job: Watched) -> str:
    step, last = job.number("step"), job.forecast.max_steps if job.forecast else None
    if step is None:
        return ""
    # A job that resume= has trained longer is beyond its last step.
    return f"{step:.0f}" if last is None or step > last else f"{step:.0f}/{last}"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def _marked(job: Watched, best: Watched | None) -> Text:
    """The lowest validation loss, with a star if it is the best of all."""
    is_best = job is best
    return Text("*" * is_best + _loss(job.best), "bold green" if is_best else "")


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _peak(job: Watched) -> Text:
    """``0.81/4.0 GiB``, the peak in red if it is above the budget."""
    peak = job.number("peak_memory_bytes")
    if peak is None or job.forecast is None:
        return Text("" if peak is None else format_bytes(peak))
    budget = job.forecast.budget
    unit, size = ("GiB", 2**30) if budget >= 2**30 else ("MiB", 2**20)
    digits = f"{peak / size:.2f}" if unit == "GiB" else f"{peak / size:.0f}"
    limit = f"{budget / size:.1f}" if unit == "GiB" else f"{budget / size:.0f}"
    return Text.assemble((digits, "red" if peak > budget else ""), f"/{limit} {unit}")


def _eta(job: Watched, rates: Rates) -> str:
    left = job.seconds_left(rates) if job.state in (RUNNING, STARTING) else None
    return "" if left is None else duration(left)
