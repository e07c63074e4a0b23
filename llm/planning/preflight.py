"""The jobs of a sweep as they are planned, shown before the first one starts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Column, Table
from rich.text import Text

from llm.commands import typed_command
from llm.experiment.console import console, duration, panel, say
from llm.experiment.sweep_table import labels
from llm.experiment.tail import number
from llm.experiment.watch import Forecast, Rates, estimate, words
from llm.settings.earlier import NEW, UNFINISHED, UNVERIFIED, Earlier, runs_again
from llm.units import format_bytes, format_count, minutes, plural

ROWS = 40  # jobs that the table shows
NAMED = 10  # jobs that may not fit
WORDS = {NEW: "new", UNFINISHED: "to continue", UNVERIFIED: "to be compared"}


@dataclass(frozen=True)
class PlannedJob:
    """One job of a sweep before it starts."""

    values: dict[str, str]  # of the keys that vary over the sweep
    forecast: Forecast | None  # None: its vocabulary is unknown before its text is read
    earlier: Earlier  # what its folder holds
    retry: str  # run.retry
    fit: str  # memory.fit

    @property
    def runs(self) -> bool:
        """Whether this command runs the job."""
        return runs_again(self.retry, self.earlier)

    @property
    def state(self) -> str:
        """``new``, ``to continue``, ``finished``, or how it ended if it does not run again."""
        if not self.runs:
            return "finished" if self.earlier.is_finished else str(self.earlier.ended)
        is_new = self.earlier.state == NEW
        return "anew" if self.retry == "all" and not is_new else WORDS[self.earlier.state]

    @property
    def may_not_fit(self) -> bool:
        """Whether the job runs and is predicted to take more than its budget."""
        return self.runs and self.forecast is not None and not self.forecast.fits

    def seconds(self, rates: Rates) -> float | None:
        """Seconds that the job still takes; None if unknown."""
        if not self.runs:
            return 0.0
        if self.forecast is None:
            return None
        done = number(self.earlier.summary, "tokens") if self.state == WORDS[UNFINISHED] else None
        left = rates.train_seconds(self.forecast, done or 0)
        return None if left is None else left + rates.overhead


def show_preflight(name: str, jobs: Sequence[PlannedJob], rates: Rates, at_once: int) -> None:
    """Show a summary of the sweep ``name``, and the jobs that may not fit.

    ``rates``: from jobs of earlier commands (:func:`llm.experiment.watch.rates_of`). ``at_once``:
    how many run together.
    """
    states = Counter(job.state for job in jobs)
    counts = ", ".join(f"{count:,} {words(state)}" for state, count in states.items())
    facts = {"jobs": f"{len(jobs):,}: {counts}"}
    running = [job for job in jobs if job.runs]
    known = [job.forecast for job in running if job.forecast is not None]
    if known:
        facts |= _facts(known)
    if running:
        facts["time"] = _time(running, rates, at_once)
    panel(f"sweep {name}", facts)
    for label, job in zip(labels([job.values for job in jobs]), jobs, strict=True):
        if job.earlier.is_extended:
            step = number(job.earlier.summary, "step") or 0
            longer = f"{label} was trained longer than this sweep does, to step {step:,.0f}"
            say(f"{longer}: its loss does not compare with the others")
    if unknown := len(running) - len(known):
        known_then = "size, memory and time are known once run_prepare.py has prepared the text"
        say(f"{plural(unknown, 'job')}: {known_then}")
    _name_large_jobs(jobs)


def _facts(known: Sequence[Forecast]) -> dict[str, str]:
    tokens = sum(one.tokens or 0 for one in known)
    time = sum(one.minutes or 0.0 for one in known if one.tokens is None)
    budgets = [f"{tokens:,} tokens"] * (tokens > 0) + [minutes(time)] * (time > 0)
    sizes = sorted({one.parameters for one in known})
    size = f"{sizes[0]:,}" + f" to {sizes[-1]:,}" * (len(sizes) > 1)
    largest = max(known, key=lambda one: one.peak)
    peak, budget = format_bytes(largest.peak), format_bytes(largest.budget)
    return {
        "training": " and ".join(budgets) or "0 tokens",
        "parameters": size,
        "memory": f"at most {peak} predicted, of {budget}",
    }


def _time(jobs: Sequence[PlannedJob], rates: Rates, at_once: int) -> str:
    seconds = estimate((job.seconds(rates) for job in jobs), at_once)
    together = f", {at_once} at a time" if at_once > 1 else ""
    if seconds is None:
        return f"known after the first steps of a job{together}"
    return f"about {duration(seconds)}{together}"


def _name_large_jobs(jobs: Sequence[PlannedJob]) -> None:
    fit = "" if all(job.fit == "auto" for job in jobs) else "; memory.fit=auto tries to change that"
    large = [
        f"  {label}: {format_bytes(job.forecast.peak)} of {format_bytes(job.forecast.budget)}"
        for label, job in zip(labels([job.values for job in jobs]), jobs, strict=True)
        if job.may_not_fit and job.forecast is not None
    ]
    if not large:
        return
    say(f"{plural(len(large), 'job')} may not fit memory.budget_gib{fit}:")
    for line in large[:NAMED]:
        say(line)
    if len(large) > NAMED:
        say(f"  and {len(large) - NAMED:,} more")


def show_jobs(name: str, jobs: Sequence[PlannedJob], rates: Rates, at_once: int) -> None:
    """For ``run.dry_run=true``: a row for each job, the summary, and the command that runs them."""
    table = Table(
        Column("job", overflow="fold"),
        *(Column(title, justify="right") for title in ("parameters", "tokens", "peak GiB")),
        "fits", Column("time", justify="right"), "state", box=None, pad_edge=False,
    )  # fmt: skip
    names = labels([job.values for job in jobs])
    for label, job in list(zip(names, jobs, strict=True))[:ROWS]:
        table.add_row(*map(Text, [label, *_cells(job, rates)]))
    console.print(table)
    if len(jobs) > ROWS:
        say(f"and {len(jobs) - ROWS:,} more")
    show_preflight(name, jobs, rates, at_once)
    say(f"nothing was started; to run them: {typed_command(without=['run.dry_run='])}")


def _cells(job: PlannedJob, rates: Rates) -> list[str]:
    known, seconds = job.forecast, job.seconds(rates)
    time = "-" if seconds is None or not job.runs else duration(seconds)
    if known is None:
        return ["-", "-", "-", "-", time, words(job.state)]
    budget = f"{known.minutes or 0:g} min" if known.tokens is None else format_count(known.tokens)
    return [
        format_count(known.parameters), budget, f"{known.peak / 2**30:.2f}",
        "yes" if known.fits else "no", time, words(job.state),
    ]  # fmt: skip
