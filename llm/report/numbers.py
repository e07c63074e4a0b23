"""The numbers of a report: points of equal settings, compared with each other."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llm import __version__
from llm.answer import SCHEMA
from llm.experiment.watch import WAITING
from llm.report import importance, scaling, statistics, words
from llm.report.importance import Importance, Transfer
from llm.report.measure import BEST, LeftOut, Measure, comparable
from llm.report.points import (
    Point,
    make_points,
    mark_fronts,
    same_value,
    shared_settings,
)
from llm.report.record import RUNNING, RunRecord
from llm.report.scaling import Scaling
from llm.sealed import Plain

BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"


@dataclass(frozen=True)
class Comparison:
    """``point`` compared with the point ``with_``; ``difference``: of their means.

    [low, high] is the confidence interval at the corrected level: it contains 0 exactly if the
    difference is not shown. ``more_seeds``: per point, to show this difference; None: more than 100
    or unknown.
    """

    point: int
    with_: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: str
    more_seeds: int | None
    test: str

    @property
    def is_shown(self) -> bool:
        """Whether the difference is real at 5 %, after the correction."""
        return self.verdict != NOT_SHOWN


@dataclass(frozen=True)
class Noise:
    """By how much runs differ that differ only in the seed."""

    sd: float
    df: int
    runs: int
    points: int
    source: str


@dataclass(frozen=True)
class Report:
    """All runs, and the comparison of those that can be compared. Indices count from 0."""

    title: str
    question: str | None
    made: str
    measure: Measure
    records: Sequence[RunRecord]
    keys: list[str]
    shared: Plain
    points: list[Point]
    best: int | None
    default: int | None
    comparisons: list[Comparison]
    verdict: Comparison | None
    left_out: list[LeftOut]
    noise: Noise | None
    importance: list[Importance]
    scaling: Scaling | str | None  # a text says why no law is fitted
    transfer: Transfer | None

    @property
    def counts(self) -> dict[str, int]:
        """How many runs ended in each way."""
        return dict(Counter(record.status for record in self.records))

    @property
    def is_running(self) -> bool:
        """Whether some run is not over yet."""
        return any(record.status in (RUNNING, WAITING) for record in self.records)

    @property
    def against_best(self) -> dict[int, Comparison]:
        """The comparison of each point with the best, by the point's index."""
        return {one.point: one for one in self.comparisons}


def analyse(
    records: Sequence[RunRecord], *, metric: str = BEST, title: str = "",
    question: str | None = None, default: Mapping[str, str] | None = None,
    earlier: Callable[[], Sequence[tuple[str, float]]] = tuple,
) -> Report:  # fmt: skip
    """Compare the finished runs. ``metric``: ``best`` or ``last``, the evaluation that counts.

    ``default``: values of the swept keys if nothing is typed. ``earlier`` returns (point, loss) of
    other finished runs on the same data: how large the noise is if no point has two seeds.
    """
    measure, kept, left_out = comparable(records, metric)
    keys, points = make_points(records, kept, measure)
    mark_fronts(points)
    best = min(points, key=lambda point: point.mean).index if points else None
    groups = statistics.summarise([_measured(records, point, measure) for point in points])
    _add_intervals(points, groups)
    return Report(
        title=title,
        question=question,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        measure=measure,
        records=records,
        keys=keys,
        shared=shared_settings([records[point.runs[0]] for point in points]),
        points=points,
        best=best,
        default=_find_default(points, default),
        comparisons=[] if best is None else _comparisons(groups, best),
        verdict=_verdict(groups) if len(points) == 2 else None,
        left_out=left_out,
        noise=_noise(groups) or _earlier_noise(earlier()),
        importance=importance.of_keys(keys, points),
        scaling=scaling.of_points(points, measure),
        transfer=importance.transfer(keys, points),
    )


def _measured(records: Sequence[RunRecord], point: Point, measure: Measure) -> list[float]:
    values = (measure.of(records[number]) for number in point.runs)
    return [value for value in values if value is not None]


def _add_intervals(points: Sequence[Point], groups: statistics.Groups) -> None:
    lows, highs = statistics.intervals(groups)
    for point, low, high in zip(points, lows, highs, strict=True):
        if math.isfinite(low):
            point.low, point.high = float(low), float(high)


def _find_default(points: Sequence[Point], default: Mapping[str, str] | None) -> int | None:
    """The only point with the default's values."""
    found = [
        point.index
        for point in points
        if default and all(
            key in default and same_value(value, default[key])
            for key, value in point.values.items()
        )
    ]  # fmt: skip
    return found[0] if len(found) == 1 else None


def _comparisons(groups: statistics.Groups, best: int) -> list[Comparison]:
    if groups.has_noise:
        return _plain_pairs(groups, statistics.against_best(groups, best))
    others = (number for number in range(len(groups.means)) if number != best)
    return [_without_test(groups, number, best) for number in others]


def _verdict(groups: statistics.Groups) -> Comparison:
    """The second of two points compared with the first."""
    if not groups.has_noise:
        return _without_test(groups, 1, 0)
    return _plain_pairs(groups, statistics.compare(groups, [1], [0]))[0]


def _without_test(groups: statistics.Groups, point: int, other: int) -> Comparison:
    difference = float(groups.means[point] - groups.means[other])
    return Comparison(
        point, other, difference, None, None, None, None, NOT_SHOWN, None,
        "no test: every point has one seed",
    )  # fmt: skip


def _plain_pairs(groups: statistics.Groups, pairs: statistics.Pairs) -> list[Comparison]:
    more = statistics.more_seeds(groups, pairs)
    columns = {name: value.tolist() for name, value in vars(pairs).items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    both = (groups.is_pooled[pairs.a] & groups.is_pooled[pairs.b]).tolist()
    return [_plain_pair(*one) for one in zip(rows, more, both, pairs.is_shown, strict=True)]


def _plain_pair(row: dict[str, Any], more: int | None, pooled: bool, shown: bool) -> Comparison:
    name = "pooled variance" if pooled else "Welch's test"
    verdict = NOT_SHOWN if not shown else BETTER if row["differences"] < 0 else WORSE
    return Comparison(
        row["a"], row["b"], row["differences"], row["low"], row["high"], row["p"],
        row["adjusted"], verdict, None if shown else more,
        f"{name}, {row['df']:.3g} degrees of freedom",
    )  # fmt: skip


def _noise(groups: statistics.Groups) -> Noise | None:
    used = groups.is_pooled if groups.df else groups.sizes > 1
    repeated = used & (groups.sizes > 1)
    df = int((groups.sizes[repeated] - 1).sum())
    if not df:
        return None
    variance = float(((groups.sizes - 1)[repeated] * groups.variances[repeated]).sum() / df)
    return Noise(
        math.sqrt(variance), df, int(groups.sizes[repeated].sum()), int(repeated.sum()), words.THIS
    )


def _earlier_noise(earlier: Sequence[tuple[str, float]]) -> Noise | None:
    losses: dict[str, list[float]] = defaultdict(list)
    for point, loss in earlier:
        if math.isfinite(loss):
            losses[point].append(loss)
    groups = [group for group in losses.values() if len(group) > 1]
    summary = statistics.summarise(groups)
    if not summary.df:
        return None
    sizes = summary.sizes[summary.is_pooled]
    sd = math.sqrt(summary.pooled)
    return Noise(sd, summary.df, int(sizes.sum()), len(sizes), words.EARLIER)


def as_plain(report: Report) -> Plain:
    """The document of ``report.json``: plain values, None for unknown numbers."""
    point_of = {number: point.index for point in report.points for number in point.runs}
    changes = _changes(report.records)
    runs = [
        {key: value for key, value in vars(record).items() if key not in ("settings", "point")}
        | {"point": point_of.get(number), "changes": changes[number], "log": None}
        for number, record in enumerate(report.records)
    ]
    return {
        "schema": SCHEMA, "status": "finished", "exit": 0, "title": report.title,
        "made": report.made, "version": __version__,
        "is_running": report.is_running,
        "measure": dict(vars(report.measure)),
        "question": report.question,
        "keys": report.keys,
        "shared": report.shared,
        "answer": {
            "sentences": words.sentences(report), "best": report.best, "default": report.default,
            "command": words.longer(report),
        },
        "points": [dict(vars(point)) for point in report.points],
        "comparisons": [_plain_comparison(one) for one in report.comparisons],
        "verdict": None if report.verdict is None else _plain_comparison(report.verdict),
        "runs": runs,
        "counts": report.counts,
        "left_out": [dict(vars(one)) for one in report.left_out],
        "noise": None if report.noise is None else dict(vars(report.noise)),
        "importance": [dict(vars(one)) for one in report.importance],
        "scaling": scaling.as_plain(report.scaling),
        "transfer": None if report.transfer is None else report.transfer.as_plain(),
    }  # fmt: skip


def _plain_comparison(one: Comparison) -> Plain:
    plain = {key.rstrip("_"): value for key, value in vars(one).items()}
    finite = (float, int)
    return {
        key: None if isinstance(value, finite) and not math.isfinite(value) else value
        for key, value in plain.items()
    }


def _changes(records: Sequence[RunRecord]) -> list[Plain]:
    """The settings of each run that not all runs share.

    A job that waits and a run with a damaged config.yaml have no settings, and do not count.
    """
    shared = shared_settings([record for record in records if record.settings])
    return [
        {key: value for key, value in record.settings.items() if key not in shared}
        for record in records
    ]
