"""A plan of memory: what a run takes, whether it fits, and what would make it fit."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llm.memory.fit import Fitted, cheapest_changes, fit
from llm.memory.predict import Lines, Prediction, Setup
from llm.units import format_bytes

# Told apart with any kind of colour vision: Paul Tol's "muted" scheme (personal.sron.nl/~pault).
COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255",
    "#aa4499", "#bbbbbb",
)  # fmt: skip


@dataclass(frozen=True)
class Largest:
    """The largest value of a size that fits (None: none does), and what the next one takes."""

    key: str
    value: int | None
    parameters: int | None
    peak: int | None  # bytes
    next_value: int | None  # None: there is none
    next_peak: int | None  # None: no way to run it fits

    @property
    def sentence(self) -> str:
        """``largest n_layer that fits: 14 (...); 15 takes 4.12 GiB``"""
        more = ""
        if self.next_value is not None:
            takes = f"takes {self._size(self.next_peak)}" if self.next_peak else "does not fit"
            more = f"{self.next_value:,} {takes}"
        if self.value is None:
            return f"no {self.key} fits" + (f": {more}" if self.next_peak else "")
        size = f"{self.parameters:,} parameters, {self._size(self.peak or 0)}"
        more = more or "there is no larger one"
        return f"largest {self.key} that fits: {self.value:,} ({size}); {more}"

    def _size(self, count: int) -> str:
        """In GiB, unless both would read alike."""
        alike = format_bytes(self.peak or 0) == format_bytes(self.next_peak or 0)
        return f"{count / 2**20:,.1f} MiB" if alike else format_bytes(count)

    @property
    def cell(self) -> str:
        """The same for a table."""
        return "none" if self.value is None else f"{self.value:,} ({format_bytes(self.peak or 0)})"


@dataclass(frozen=True)
class Plan:
    """What one run takes, whether it fits, and what would make it fit."""

    label: str  # overrides in which it differs from the other points
    values: dict[str, str]  # the same, by key
    setup: Setup
    parameters: int
    prediction: Prediction  # as it was asked for
    reserve: Lines
    budget: int  # bytes
    limit: str  # what sets it: memory.budget_gib=4, or a smaller GPU
    mode: str  # memory.fit
    eight_bit: bool  # whether optimizer.state_bits may be changed to 8
    device: str  # trainer.device
    largest: Largest | None = None
    begun: bool = False  # then the optimizer's state has the bits that it has

    @property
    def fits(self) -> bool:
        """As it was asked for."""
        return self.prediction.total <= self.budget

    @cached_property  # takes longest, and only what is shown or started needs it
    def fitted(self) -> Fitted | None:
        """With as little changed as makes it fit; None: nothing does."""
        if self.fits:
            return Fitted(self.setup, self.prediction)
        return fit(self.setup, self.budget, self.reserve, self.eight_bit)

    @cached_property
    def ways(self) -> list[Fitted]:
        """The cheapest changes that make it fit, whether or not what they need is installed."""
        return cheapest_changes(self.setup, self.budget, self.reserve, not self.begun)

    @property
    def started(self) -> Fitted | None:
        """What would be started, which ``memory.fit=auto`` may change; None: it would not fit."""
        return self.fitted if self.fits or self.mode == "auto" else None

    @property
    def taken(self) -> Prediction:
        """By what would be started."""
        return self.started.prediction if self.started else self.prediction


def kinds(plans: Sequence[Plan]) -> dict[str, str]:
    """All that takes memory in some plan, each with a colour; what is no tensor in grey."""
    tensors = {kind for plan in plans for kind, size in plan.taken.lines.items() if size}
    aside = {kind for plan in plans for kind in plan.taken.reserve} & tensors
    order = {kind: n for plan in plans for n, kind in enumerate(plan.taken.lines)}
    names = sorted(tensors - aside, key=lambda kind: (order[kind], kind))
    last = len(COLOURS) - 1
    colours = {kind: COLOURS[n % last] for n, kind in enumerate(names)}
    return colours | dict.fromkeys(sorted(aside), COLOURS[last])


def refusal(plans: Sequence[Plan], points: int) -> str | None:
    """Why the command ends with a refusal: a single run that would be refused, or a grid of
    ``points`` in which nothing fits.
    """
    asked = plans[0].largest
    if asked and all(plan.largest and plan.largest.value is None for plan in plans):
        where = f"at any of {points:,} points" if points > 1 else plans[0].limit
        return f"no {asked.key} fits {where}, not even the smallest"
    if any(plan.started for plan in plans) or (points == 1 and plans[0].mode == "off"):
        return None
    least = min(plans, key=lambda plan: plan.prediction.total - plan.budget)
    more = ", or more memory.budget_gib" if least.limit.startswith("memory.") else ""
    advice = f"take a smaller model or batch{more}"
    peak = least.prediction
    takes = f"takes {format_bytes(peak.total)}, most is {largest_of(peak.lines)}"
    if points == 1:
        advice = "change it as told above" if least.ways else advice
        return f"the run does not fit {least.limit}: it {takes}: {advice}"
    which = f"the smallest, {least.label}," if least.label else "each"
    return f"none of {points:,} points fits {least.limit}: {which} {takes}: {advice}"


def numeric_axes(plans: Sequence[Plan]) -> list[str]:
    """The keys that vary, if they are one or two and all their values are numbers."""
    keys = list(plans[0].values)
    try:
        for plan in plans:
            for value in plan.values.values():
                float(value)
    except ValueError:
        return []
    return keys if len(keys) <= 2 else []


def ticks(plans: Sequence[Plan], key: str) -> list[str]:
    """The values of a numeric key, in order."""
    return sorted({plan.values[key] for plan in plans}, key=float)


def to_csv(plans: Sequence[Plan]) -> str:
    """All points, with the bytes of all that takes memory."""
    out, every = io.StringIO(), kinds(plans)
    writer = csv.writer(out, lineterminator="\n")
    columns = ["parameters", "peak_bytes", "budget_bytes", "fits", "changes"]
    asked = plans[0].largest
    more = [] if asked is None else [f"largest {asked.key}"]
    writer.writerow([*plans[0].values, *columns, *more, *every])
    for plan in plans:
        more = [] if plan.largest is None else [str(plan.largest.value or "")]
        sizes = [plan.taken.lines.get(kind, 0) for kind in every]
        started = plan.started
        found = ["no", ""] if started is None else ["yes", " ".join(started.changes)]
        facts = [plan.parameters, plan.taken.total, plan.budget, *found]
        writer.writerow([*plan.values.values(), *facts, *more, *sizes])
    return out.getvalue()


def largest_of(lines: Lines) -> str:
    """``activations (3.35 GiB)``"""
    most = max(lines, key=lambda kind: lines[kind])
    return f"{most} ({format_bytes(lines[most])})"
