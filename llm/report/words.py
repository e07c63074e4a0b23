"""The sentences at the top of a report: the best settings, the real differences, the next step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llm.experiment.sweep_screen import train_longer
from llm.experiment.watch import words
from llm.report.importance import RATE
from llm.report.points import Point, number_of
from llm.report.statistics import LEVEL, MOST_SEEDS
from llm.units import plural

if TYPE_CHECKING:
    from llm.report.numbers import Comparison, Report

THIS, EARLIER = "these runs", "earlier runs on this data"  # where the noise was measured
CHEAPER = 0.8  # of the best point's cost, to be worth a sentence
COSTS = {  # the saving of a cheaper point
    "parameters": "of the parameters", "train_seconds": "of the training time",
    "peak_memory_bytes": "of the memory",
}  # fmt: skip
MOST_NAMES = 3  # labels in a sentence


def sentences(report: Report) -> list[str]:
    """The sentences about the numbers, the most useful one first."""
    return [*_answer(report), *_conditions(report)]


def _answer(report: Report) -> Iterator[str]:
    """The best point and the differences that are shown or not shown."""
    if report.best is None:
        yield "No finished run can be compared."
        return
    best = report.points[report.best]
    if len(report.points) == 1:
        runs = f"All {best.n:,} compared runs have the same settings"
        start = runs if best.n > 1 else "Only one run can be compared"
        yield f"{start}: {_mean(report, best)}."
        return
    start = "So far the" if report.is_running else "The"
    yield f"{start} best settings are {best.label}: {_mean(report, best)}."
    if report.default is not None:
        yield _default(report, report.default)
    if any(point.n > 1 for point in report.points):
        yield from _others(report)
    else:
        yield (
            "Every point has one seed, so no difference can be shown. Type seed=1,2,3 to train "
            "each point with three seeds."
        )
    yield from _edge(report, best)


def _conditions(report: Report) -> Iterator[str]:
    """By which number runs are compared, how noisy it is, and which runs are missing."""
    if report.measure.why:
        yield f"The points are compared by bits per byte, because {report.measure.why}."
    if report.noise is not None:
        yield _noise(report)
    yield from _test_losses(report)
    others = {state: count for state, count in report.counts.items() if state != "finished"}
    if others:
        ended = ", ".join(f"{count:,} {words(state)}" for state, count in others.items())
        total = plural(sum(others.values()), "run")
        has, is_ = ("has", "is") if sum(others.values()) == 1 else ("have", "are")
        yield f"{total} {has} not finished and {is_} not averaged: {ended}."
    for one in report.left_out:
        yield f"Left out, {plural(len(one.runs), 'finished run')}: {one.reason}."


def _test_losses(report: Report) -> Iterator[str]:
    """The loss on the text that no choice has seen, of the best point and of the default."""
    if report.best is None or (best := report.points[report.best]).test_mean is None:
        return
    runs = plural(best.test_n, "run")
    text = f"On the test text the best settings have a loss of {best.test_mean:.4f} ({runs})"
    if report.default not in (None, report.best):
        default = report.points[report.default or 0]
        if default.test_mean is not None:
            text += (
                f", and the default has {default.test_mean:.4f} ({plural(default.test_n, 'run')})"
            )
    yield f"{text}."


def _mean(report: Report, point: Point) -> str:
    """``best validation loss 1.6100 nats per token (mean of 3 seeds, 95 % interval ...)``"""
    text = f"{report.measure.name} {point.mean:.4f}"
    if report.measure.unit not in report.measure.name:
        text += f" {report.measure.unit}"
    details = [f"mean of {point.n} seeds" if point.n > 1 else "one seed"]
    if point.low is not None and point.high is not None:
        details.append(f"95 % interval {point.low:.4f} to {point.high:.4f}")
    return f"{text} ({', '.join(details)})"


def _default(report: Report, default: int) -> str:
    if default == report.best:
        return "These are the default settings."
    one = report.against_best[default]
    text = f"The default, {report.points[default].label}, is {one.difference:.4f} worse"
    if one.p is None:
        return f"{text}, which is not tested."
    return f"{text}{_tested(one)}: the gain is {_shown(one)}."


def _tested(one: Comparison) -> str:
    """``(95 % interval 0.0100 to 0.0300, p = 0.0021)``, both corrected."""
    if one.low is None or one.high is None or one.p_adjusted is None:
        return ""
    p = "p < 0.0001" if one.p_adjusted < 1e-4 else f"p = {one.p_adjusted:.2g}"
    return f" (95 % interval {one.low:.4f} to {one.high:.4f}, {p})"


def _shown(one: Comparison) -> str:
    return "shown" if one.is_shown else "not shown, it may be noise"


def _others(report: Report) -> Iterator[str]:
    """The points that are not shown to be worse than the best, and how many seeds would tell."""
    unclear = [one for one in report.comparisons if not one.is_shown]
    unclear.sort(key=lambda one: one.difference)
    labels = [report.points[one.point].label for one in unclear]
    others = len(report.comparisons)
    if not unclear:
        if others > 1:
            how_many = "Both" if others == 2 else f"All {others:,}"
            yield f"{how_many} other points are shown to be worse."
            return
        (one,) = report.comparisons
        if one.point != report.default:  # else the sentence about the default has said it
            label = report.points[one.point].label
            yield f"{label} is shown to be worse, by {one.difference:.4f}{_tested(one)}."
        return
    if others == 1:
        (one,) = unclear
        if one.point != report.default:  # else the sentence about the default has said it
            yield (
                f"{labels[0]} is not shown to be worse: it is {one.difference:.4f} above, which "
                f"may be noise{_tested(one)}."
            )
    else:
        which = "None" if len(unclear) == others else f"{others - len(unclear):,}"
        verb = "is" if which in ("None", "1") else "are"
        yield (
            f"{which} of the {others:,} other points {verb} shown to be worse. Not shown: "
            f"{_names(labels)}."
        )
    yield from _cheaper(report, [report.points[one.point] for one in unclear])
    yield _more_seeds(report, unclear)


def _names(labels: Sequence[str]) -> str:
    """``a; b; c; and 4 more``"""
    more = [f"and {len(labels) - MOST_NAMES:,} more"] if len(labels) > MOST_NAMES else []
    return "; ".join([*labels[:MOST_NAMES], *more])


def _cheaper(report: Report, unclear: Sequence[Point]) -> Iterator[str]:
    """The cheapest point that is not shown to be worse, by the first cost that it saves."""
    if report.best is None:
        return
    best = report.points[report.best]
    for cost, of_what in COSTS.items():
        most = getattr(best, cost)
        costs = ((getattr(point, cost), point) for point in unclear)
        known = [(value, point) for value, point in costs if value is not None]
        if not most or not known:
            continue
        least, point = min(known, key=lambda pair: (pair[0], pair[1].mean))
        if least <= CHEAPER * most:
            share = f"{100 * least / most:.0f} %"
            yield f"{point.label} is not shown to be worse and needs {share} {of_what}."
            return


def _more_seeds(report: Report, unclear: Sequence[Comparison]) -> str:
    """The difference that the fewest additional seeds would show, if it is as large as measured."""
    possible = [(one.more_seeds, one) for one in unclear if one.more_seeds is not None]
    if not possible:
        those = "this difference" if len(unclear) == 1 else "one of these differences"
        return f"More than {MOST_SEEDS} more seeds per point would be needed to show {those}."
    more, one = min(possible, key=lambda pair: pair[0])
    return (
        f"About {plural(more, 'more seed')} per point would show the difference to "
        f"{report.points[one.point].label} ({one.difference:.4f}) with 80 % power, if it is real."
    )


def _edge(report: Report, best: Point) -> Iterator[str]:
    """A hint if the best learning rate is the lowest or the highest of those tried with the same
    other settings.
    """
    others = {**best.values, RATE: ""}
    alike = [point.values for point in report.points if {**point.values, RATE: ""} == others]
    rates = [number_of(values.get(RATE)) for values in alike]
    known = sorted({rate for rate in rates if rate is not None})
    rate = number_of(best.values.get(RATE))
    if rate is None or len(known) < 3:
        return
    for end, adjective in ((known[0], "lower"), (known[-1], "higher")):
        if rate == end:
            yield f"The best rate, {rate:g}, is at the end of the range: try a {adjective} one."


def _noise(report: Report) -> str:
    """How much the seed alone changes the result."""
    from scipy.special import stdtrit

    noise = report.noise
    assert noise is not None
    is_single = all(point.n == 1 for point in report.points)
    runs = plural(noise.runs, "run" if noise.source == THIS else "earlier run")
    groups = plural(noise.points, "point" if noise.source == THIS else "group")
    text = (
        f"Runs that differ only in the seed have a standard deviation of {noise.sd:.4f} "
        f"({groups}, {runs})"
    )
    if not is_single:
        return f"{text}."
    # The 95 % interval of the difference of two single runs
    limit = float(stdtrit(noise.df, 1 - LEVEL / 2)) * math.sqrt(2) * noise.sd
    return f"{text}, so a difference below {limit:.4f} may be noise."


def longer(report: Report) -> str | None:
    """The command that trains the best run of the best point twice as long.

    None while runs may still become the best, or if the length of the run is unknown.
    """
    if report.best is None or report.is_running:
        return None
    runs = [report.records[number] for number in report.points[report.best].runs]
    best = min(runs, key=lambda record: report.measure.of(record) or math.inf)
    budgets = (best.settings.get(key) for key in ("trainer.max_steps", "trainer.max_minutes"))
    steps, minutes = (value if isinstance(value, int | float) else None for value in budgets)
    return train_longer(best.folder, steps, minutes)
