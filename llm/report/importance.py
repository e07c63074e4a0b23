"""Which of the swept keys changes the result, and whether the best rate moves with the size."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from llm.report.points import Point, number_of
from llm.report.statistics import spearman
from llm.sealed import Plain

RATE = "optimizer.lr"
SIZES = ("model.n_embed", "model.n_layer", "model.block_size", "trainer.batch_size")


@dataclass(frozen=True)
class Importance:
    """How the result depends on one key, over ``n`` points.

    ``correlation``: Spearman's, None for words; ``share``: of the variance between the points of a
    full grid that this key alone explains.
    """

    key: str
    n: int
    correlation: float | None
    share: float | None


@dataclass(frozen=True)
class Row:
    """The means at one size by rate, and the rate of the lowest mean."""

    size: str
    means: dict[str, float]
    best: str


@dataclass(frozen=True)
class Transfer:
    """Whether the best learning rate at one size is the best at another."""

    rate_key: str
    size_key: str
    rows: list[Row]
    sentence: str

    def as_plain(self) -> Plain:
        """The table for ``report.json``."""
        return vars(self) | {"rows": [dict(vars(row)) for row in self.rows]}


def of_keys(keys: Sequence[str], points: Sequence[Point]) -> list[Importance]:
    """The importance of each key in which the points differ, the most important one first."""
    is_grid = _is_grid(keys, points)
    found = []
    for key in keys:
        with_key = [point for point in points if key in point.values]
        numbers = [number_of(point.values[key]) for point in with_key]
        known = [number for number in numbers if number is not None]
        correlation = None
        if len(known) == len(numbers) and len(known) > 2:  # for two points it is 1 or -1
            correlation = spearman(known, [point.mean for point in with_key])
        share = _share(key, points) if is_grid else None
        found.append(Importance(key, len(with_key), correlation, share))
    return sorted(found, key=lambda one: (-(one.share or 0.0), -abs(one.correlation or 0.0)))


def _is_grid(keys: Sequence[str], points: Sequence[Point]) -> bool:
    """Whether each combination of the values of two keys or more is there once."""
    if len(keys) < 2 or any(key not in point.values for point in points for key in keys):
        return False
    sizes = [len({point.values[key] for point in points}) for key in keys]
    rows = {tuple(point.values[key] for key in keys) for point in points}
    return math.prod(sizes) == len(rows) == len(points)


def _share(key: str, points: Sequence[Point]) -> float | None:
    """The main effect of ``key``: variance of the means per value / variance of all means."""
    total = fmean(point.mean for point in points)
    whole = fmean((point.mean - total) ** 2 for point in points)
    by_value: dict[str, list[float]] = defaultdict(list)
    for point in points:
        by_value[point.values[key]].append(point.mean)
    own = fmean((fmean(by_value[point.values[key]]) - total) ** 2 for point in points)
    return min(1.0, own / whole) if whole else None


def transfer(keys: Sequence[str], points: Sequence[Point]) -> Transfer | None:
    """The table of means by size and learning rate; None unless a sweep varies both.

    Of several points with the same size and rate, the best one counts.
    """
    sizes = [key for key in SIZES if key in keys]
    if RATE not in keys or not sizes:
        return None
    size_key = sizes[0]
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for point in points:
        size, rate = point.values.get(size_key), point.values.get(RATE)
        if size is None or rate is None or number_of(rate) is None or number_of(size) is None:
            return None
        table[size][rate] = min(point.mean, table[size].get(rate, math.inf))
    rows = [
        Row(size, dict(sorted(means.items(), key=_by_number)), min(means, key=means.__getitem__))
        for size, means in sorted(table.items(), key=_by_number)
    ]
    rows = [row for row in rows if len(row.means) > 1]
    if len(rows) < 2:
        return None
    return Transfer(RATE, size_key, rows, _sentence(size_key, rows))


def _by_number(item: tuple[str, object]) -> float:
    return number_of(item[0]) or 0.0


def _sentence(size_key: str, rows: Sequence[Row]) -> str:
    """Which rate has the lowest mean at each size. No difference is tested."""
    name = size_key.rpartition(".")[2]
    best = {row.best for row in rows}
    if len(best) == 1:
        return f"Rate {rows[0].best} has the lowest mean at every {name} (not tested)."
    parts = ", ".join(f"{row.best} at {name}={row.size}" for row in rows)
    small, large = rows[0], rows[-1]
    if small.best in large.means:
        lost = large.means[small.best] - large.means[large.best]
        moved = f" At {name}={large.size}, {small.best} is {lost:.4f} worse than {large.best}."
    else:
        moved = ""
    return f"The rate with the lowest mean changes (not tested): {parts}.{moved}"
